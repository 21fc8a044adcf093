//! Parses the fixed parts and names of a FUSE request out of bytes that were copied from the guest. No I/O.

use std::ffi::CStr;

use vm_memory::ByteValued;

use super::server::Errno;

/// Longest name of a directory entry in bytes (`FUSE_NAME_MAX` of the guest is larger, the host's is this).
pub(super) const NAME_MAX: usize = 255;

/// What follows the header of a request, taken from front to back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arguments<'a> {
    rest: &'a [u8],
}

impl<'a> Arguments<'a> {
    /// All bytes behind the header.
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// The next fixed part.
    ///
    /// # Errors
    /// EINVAL when there are too few bytes.
    pub(super) fn take<T: ByteValued + Default>(&mut self) -> Result<T, Errno> {
        let (head, rest) = self
            .rest
            .split_at_checked(size_of::<T>())
            .ok_or(Errno::EINVAL)?;
        let mut value = T::default();
        value.as_mut_slice().copy_from_slice(head);
        self.rest = rest;
        Ok(value)
    }

    /// The next text up to its NUL.
    ///
    /// # Errors
    /// EINVAL when there is no NUL.
    pub(super) fn text(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.rest).map_err(|_| Errno::EINVAL)?;
        self.rest = self
            .rest
            .get(text.count_bytes() + 1..)
            .ok_or(Errno::EINVAL)?;
        Ok(text)
    }

    /// The next name of a directory entry. It names something directly inside a directory and cannot leave it.
    ///
    /// # Errors
    /// EINVAL for an empty name, `.`, `..` or one with a slash; ENAMETOOLONG above [`NAME_MAX`] bytes.
    pub(super) fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text()?;
        let bytes = name.to_bytes();
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(Errno::EINVAL);
        }
        if bytes.len() > NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        Ok(name)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// EINVAL when there are fewer.
    pub(super) fn bytes(&mut self, len: u32) -> Result<&'a [u8], Errno> {
        let (head, rest) = self
            .rest
            .split_at_checked(len as usize)
            .ok_or(Errno::EINVAL)?;
        self.rest = rest;
        Ok(head)
    }
}
