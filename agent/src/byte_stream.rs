//! One asynchronous view of every descriptor that carries bytes: vsock and Unix connections, pipes, pty masters.
//!
//! Reads and writes are plain read(2) and write(2) on a non-blocking descriptor; the end of a direction is a shutdown
//! where the descriptor is a socket. Owned by whichever task copies; no buffering of its own.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A non-blocking descriptor registered with the runtime.
#[derive(Debug)]
pub struct ByteStream {
    fd: AsyncFd<OwnedFd>,
}

/// Adds O_NONBLOCK to the open file description behind `fd`.
pub fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take and give integers only.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

impl ByteStream {
    /// Takes `fd` over; it must be one that epoll knows (not a regular file). It is made non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Self::register(fd, Interest::READABLE | Interest::WRITABLE)
    }

    /// As [`ByteStream::new`], for a descriptor that is only read (the read end of a pipe).
    pub fn reader(fd: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&fd)?;
        Self::register(fd, Interest::READABLE)
    }

    fn register(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: an OwnedFd gives the same open descriptor until it is dropped, and the AsyncFd owns it from here on.
        let fd = unsafe { AsyncFd::register_with_interest(fd, interest) }?;
        Ok(ByteStream { fd })
    }

    /// Reads up to `buffer.len()` bytes; 0 is the end. The last close of a pty's other side counts as the end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fd
            .async_io(Interest::READABLE, |fd| read_once(fd.as_raw_fd(), buffer))
            .await
    }

    /// As [`ByteStream::read`] on a socket, but leaves the bytes there.
    pub async fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fd
            .async_io(Interest::READABLE, |fd| {
                // SAFETY: the pointer and length are those of a live, exclusively borrowed buffer.
                check(unsafe {
                    libc::recv(
                        fd.as_raw_fd(),
                        buffer.as_mut_ptr().cast(),
                        buffer.len(),
                        libc::MSG_PEEK,
                    )
                })
            })
            .await
    }

    /// Reads what is there now, without waiting. `WouldBlock` when there is nothing.
    pub fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        read_once(self.fd.get_ref().as_raw_fd(), buffer)
    }

    /// Writes some of `bytes` and returns how many.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.fd
            .async_io(Interest::WRITABLE, |fd| write_once(fd.as_raw_fd(), bytes))
            .await
    }

    /// Writes all of `bytes`.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits until the other side has gone altogether or has stopped sending.
    pub async fn closed(&self) {
        loop {
            let Ok(mut guard) = self.fd.readable().await else {
                return;
            };
            if guard.ready().is_read_closed() {
                return;
            }
            // Readable with bytes that nobody wants yet; wait for the next edge.
            guard.clear_ready();
        }
    }

    /// Ends the sending direction of a socket.
    pub fn shutdown_write(&self) -> io::Result<()> {
        // SAFETY: shutdown(2) takes no pointers.
        if unsafe { libc::shutdown(self.fd.get_ref().as_raw_fd(), libc::SHUT_WR) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// The descriptor's number, for ioctls.
    pub fn raw(&self) -> RawFd {
        self.fd.get_ref().as_raw_fd()
    }

    /// Gives the descriptor back, out of the runtime.
    pub fn into_inner(self) -> OwnedFd {
        self.fd.into_inner()
    }

    /// Accepts one connection of a listening socket.
    pub async fn accept(&self) -> io::Result<ByteStream> {
        let accepted = self
            .fd
            .async_io(Interest::READABLE, |fd| {
                // SAFETY: null address pointers mean that the peer's address is not wanted.
                let accepted = unsafe {
                    libc::accept4(
                        fd.as_raw_fd(),
                        std::ptr::null_mut(),
                        std::ptr::null_mut(),
                        libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                    )
                };
                if accepted < 0 {
                    return Err(io::Error::last_os_error());
                }
                // SAFETY: accept4 returned a descriptor that nobody else owns.
                Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
            })
            .await?;
        Self::register(accepted, Interest::READABLE | Interest::WRITABLE)
    }
}

fn read_once(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live, exclusively borrowed buffer.
    match check(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) }) {
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(0),
        other => other,
    }
}

fn write_once(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and length are those of a live buffer.
    check(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) })
}

impl AsyncRead for ByteStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(context))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|fd| read_once(fd.get_ref().as_raw_fd(), unfilled)) {
                Ok(result) => {
                    buffer.advance(result?);
                    return Poll::Ready(Ok(()));
                }
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(context))?;
            match guard.try_io(|fd| write_once(fd.get_ref().as_raw_fd(), bytes)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.shutdown_write())
    }
}
