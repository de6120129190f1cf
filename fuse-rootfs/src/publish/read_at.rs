//! Images as something to read at offsets: a file, or bytes in a test.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// An image.
pub trait ReadAt: Sync {
    /// Its length in bytes.
    fn bytes(&self) -> u64;

    /// Fills `buf` from byte `offset` on.
    ///
    /// # Errors
    /// If the image ends before, or cannot be read.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

/// A file whose length was taken when it was opened: one that grows or shrinks meanwhile gives an error, not a mixture.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    bytes: u64,
}

impl ImageFile {
    /// Takes a file or block device.
    ///
    /// # Errors
    /// If its length cannot be found.
    pub fn new(mut file: File) -> io::Result<Self> {
        use std::io::{Seek as _, SeekFrom};
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, bytes })
    }
}

impl ReadAt for ImageFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

impl ReadAt for [u8] {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let found = start.and_then(|start| self.get(start..start.checked_add(buf.len())?));
        buf.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn bytes(&self) -> u64 {
        self.as_slice().bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_at(buf, offset)
    }
}
