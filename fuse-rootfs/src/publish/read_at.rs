//! Images as something to read at offsets: a file, or bytes in a test.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

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

/// Bytes of a window.
const WINDOW_BYTES: u64 = 64 * 1024;
/// Windows that are open at once: 4 MiB, more than the metadata of a base system.
const WINDOWS: u64 = 64;

/// Small reads of one image that lie close together: tens of thousands of inodes cost a hundred calls.
pub struct Windows<'a, I: ?Sized> {
    image: &'a I,
    /// By number modulo [`WINDOWS`].
    open: Mutex<Vec<Option<Window>>>,
}

/// A window's number and content.
type Window = (u64, Vec<u8>);

impl<'a, I: ReadAt + ?Sized> Windows<'a, I> {
    /// Windows into `image`, none of them open.
    pub fn new(image: &'a I) -> Self {
        Self {
            image,
            open: Mutex::new(vec![None; WINDOWS as usize]),
        }
    }
}

impl<I: ReadAt + ?Sized> ReadAt for Windows<'_, I> {
    fn bytes(&self) -> u64 {
        self.image.bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let (number, from) = (offset / WINDOW_BYTES, offset % WINDOW_BYTES);
        if from + buf.len() as u64 > WINDOW_BYTES {
            return self.image.read_at(buf, offset);
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let window = &mut open[(number % WINDOWS) as usize];
        let content = match window {
            Some((there, content)) if *there == number => content,
            other => {
                let start = number * WINDOW_BYTES;
                let bytes = self.bytes().saturating_sub(start).min(WINDOW_BYTES);
                let mut content = vec![0; bytes as usize];
                self.image.read_at(&mut content, start)?;
                &mut other.insert((number, content)).1
            }
        };
        content.as_slice().read_at(buf, from)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_show_what_is_behind_them() {
        let bytes: Vec<u8> = (0..(WINDOWS + 2) * WINDOW_BYTES + 77)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        let windows = Windows::new(&bytes);
        let end = bytes.len() as u64;
        let offsets = [
            0,
            5,
            65_530,
            65_536,
            WINDOWS * WINDOW_BYTES + 5,
            5,
            end - 40,
        ];
        for offset in offsets {
            let mut buf = [0; 40];
            windows.read_at(&mut buf, offset).unwrap();
            assert_eq!(buf, bytes[offset as usize..][..40], "at {offset}");
        }
        for offset in [end - 39, end, end + WINDOW_BYTES, u64::MAX] {
            assert!(windows.read_at(&mut [0; 40], offset).is_err(), "{offset}");
        }
        windows.read_at(&mut [], end).unwrap();
    }
}
