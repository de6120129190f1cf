//! The images of a publish, open.

use std::fs::File;

use super::by_file::Mapped;
use super::erofs::{self, Extent};
use super::{Image, ImageFile, PublishError, ReadAt as _};

/// An image that is read, and what is known of it.
pub(super) struct Opened<'a> {
    pub(super) image: &'a Image,
    pub(super) file: ImageFile,
    /// Where its files lie; `None` for what is cut at fixed lengths.
    pub(super) extents: Option<Vec<Extent>>,
    modified: Option<std::time::SystemTime>,
}

impl<'a> Opened<'a> {
    pub(super) fn open(image: &'a Image) -> Result<Self, PublishError> {
        let path = &image.path;
        let file = File::open(path).map_err(PublishError::io("open", path))?;
        let modified = file.metadata().and_then(|m| m.modified()).ok();
        let file = ImageFile::new(file).map_err(PublishError::io("read", path))?;
        let extents = if image.fixed_bytes.is_some() || !erofs::is_erofs(&file) {
            None
        } else {
            let found = erofs::file_extents(&file).map_err(|source| PublishError::Image {
                path: path.clone(),
                source,
            })?;
            Some(found)
        };
        Ok(Self {
            image,
            file,
            extents,
            modified,
        })
    }

    pub(super) fn mapped(&self) -> Result<Mapped, PublishError> {
        let is_erofs = self.extents.is_some();
        Mapped::new(&self.image.name, &self.file, is_erofs).map_err(|source| PublishError::Image {
            path: self.image.path.clone(),
            source,
        })
    }

    pub(super) fn check_unchanged(&self) -> Result<(), PublishError> {
        let path = &self.image.path;
        let now = std::fs::metadata(path).map_err(PublishError::io("read", path))?;
        if now.modified().ok() == self.modified
            && (!now.is_file() || now.len() == self.file.bytes())
        {
            return Ok(());
        }
        Err(PublishError::ImageChanged { path: path.clone() })
    }
}
