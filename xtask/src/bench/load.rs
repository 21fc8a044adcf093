//! The work that is measured inside a pod, and its other end on the host: a program of one file without dependencies, so
//! that it is compiled static in a moment and runs in any image. Prints a figure a line, `NAME NANOSECONDS COUNT`, and
//! leaves arithmetic to its caller. It is also compiled into xtask's tests.
//!
//! ```text
//! load files DIRECTORY     write, read: COUNT bytes; create, stat, unlink: COUNT files
//! load serve PORT          the other end of `load connect`
//! load connect ADDRESS     to-server, from-server: COUNT bytes; requests, connections: COUNT of them
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// Bytes of the file that is written and read, and of each transfer over TCP.
const BULK: usize = 64 << 20;

/// Bytes of one read or write.
const BLOCK: usize = 128 << 10;

const FILES: usize = 1000;
const FILE_BYTES: usize = 100;

const REQUESTS: usize = 1000;
const REQUEST_BYTES: usize = 64;
const CONNECTIONS: usize = 200;

/// What a connection is for; the first byte that the client sends.
const SINK: u8 = b's';
const SOURCE: u8 = b'r';
const ECHO: u8 = b'e';

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut out = io::stdout().lock();
    let done = match words.as_slice() {
        ["files", directory] => files(Path::new(directory), BULK, FILES, &mut out),
        ["serve", port] => TcpListener::bind(format!("0.0.0.0:{port}")).and_then(|listener| {
            writeln!(out, "listening")?;
            out.flush()?;
            serve(&listener)
        }),
        ["connect", address] => connect(address, BULK, &mut out),
        _ => Err(io::Error::other(
            "usage: load files DIRECTORY | serve PORT | connect ADDRESS",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

/// Does `work` and prints how long it took.
fn timed(
    out: &mut dyn Write,
    name: &str,
    count: usize,
    work: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let begun = Instant::now();
    work()?;
    let nanoseconds = begun.elapsed().as_nanos();
    writeln!(out, "{name} {nanoseconds} {count}")
}

fn files(directory: &Path, bulk: usize, count: usize, out: &mut dyn Write) -> io::Result<()> {
    let path = directory.join("bulk");
    let block = vec![0x5a_u8; BLOCK];
    timed(out, "write", bulk, || {
        let mut file = File::create(&path)?;
        for _ in 0..bulk / BLOCK {
            file.write_all(&block)?;
        }
        file.sync_all()
    })?;
    forget(&path)?;
    let mut block = block;
    timed(out, "read", bulk, || {
        let mut file = File::open(&path)?;
        let mut left = bulk;
        while left > 0 {
            match file.read(&mut block)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => left = left.saturating_sub(read),
            }
        }
        Ok(())
    })?;
    fs::remove_file(&path)?;

    let names: Vec<_> = (0..count)
        .map(|number| directory.join(format!("small-{number}")))
        .collect();
    let small = [0x5a_u8; FILE_BYTES];
    timed(out, "create", count, || {
        names.iter().try_for_each(|name| fs::write(name, small))
    })?;
    timed(out, "stat", count, || {
        names
            .iter()
            .try_for_each(|name| fs::metadata(name).map(|_| ()))
    })?;
    timed(out, "unlink", count, || {
        names.iter().try_for_each(fs::remove_file)
    })
}

/// Has the kernel drop what it caches of a file, so that a read asks the file system.
fn forget(path: &Path) -> io::Result<()> {
    unsafe extern "C" {
        fn posix_fadvise(descriptor: i32, offset: i64, length: i64, advice: i32) -> i32;
    }
    /// `POSIX_FADV_DONTNEED` of Linux (posix_fadvise(2)).
    const DONTNEED: i32 = 4;
    let file = File::open(path)?;
    // SAFETY: the call takes numbers alone, and the descriptor is open.
    let error = unsafe { posix_fadvise(file.as_raw_fd(), 0, 0, DONTNEED) };
    if error == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(error))
    }
}

/// Serves connections one after the other, for ever.
fn serve(listener: &TcpListener) -> io::Result<()> {
    let mut block = vec![0x5a_u8; BLOCK];
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        // A client that goes ends its connection, not the server.
        let _ = answer(&mut stream, &mut block);
    }
}

fn answer(stream: &mut TcpStream, block: &mut [u8]) -> io::Result<()> {
    let mut purpose = [0];
    stream.read_exact(&mut purpose)?;
    match purpose {
        [SINK] => {
            while stream.read(block)? > 0 {}
            // Tells the client that everything has arrived.
            stream.write_all(&[SINK])
        }
        [SOURCE] => loop {
            stream.write_all(block)?;
        },
        [ECHO] => loop {
            let mut request = [0; REQUEST_BYTES];
            stream.read_exact(&mut request)?;
            stream.write_all(&request)?;
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn connect(address: &str, bulk: usize, out: &mut dyn Write) -> io::Result<()> {
    let open = |purpose: u8| -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.write_all(&[purpose])?;
        Ok(stream)
    };
    let mut block = vec![0x5a_u8; BLOCK];
    let mut stream = open(SINK)?;
    timed(out, "to-server", bulk, || {
        for _ in 0..bulk / BLOCK {
            stream.write_all(&block)?;
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        stream.read_exact(&mut [0])
    })?;
    let mut stream = open(SOURCE)?;
    timed(out, "from-server", bulk, || {
        (0..bulk / BLOCK).try_for_each(|_| stream.read_exact(&mut block))
    })?;
    drop(stream);
    let mut request = [0x5a; REQUEST_BYTES];
    let mut stream = open(ECHO)?;
    timed(out, "requests", REQUESTS, || {
        (0..REQUESTS).try_for_each(|_| {
            stream.write_all(&request)?;
            stream.read_exact(&mut request)
        })
    })?;
    drop(stream);
    timed(out, "connections", CONNECTIONS, || {
        (0..CONNECTIONS).try_for_each(|_| {
            let mut stream = open(ECHO)?;
            stream.write_all(&request)?;
            stream.read_exact(&mut request)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(out: &[u8]) -> Vec<String> {
        String::from_utf8_lossy(out)
            .lines()
            .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn files_leaves_the_directory_empty_and_names_five_figures() {
        let directory = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        files(directory.path(), 2 * BLOCK, 3, &mut out).unwrap();
        assert_eq!(names(&out), ["write", "read", "create", "stat", "unlink"]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn connect_to_a_server_names_four_figures() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || serve(&listener));
        let mut out = Vec::new();
        connect(&address, 2 * BLOCK, &mut out).unwrap();
        assert_eq!(
            names(&out),
            ["to-server", "from-server", "requests", "connections"]
        );
    }
}
