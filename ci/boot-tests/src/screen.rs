//! What the VGA card showed: QEMU's PPM in, a small PNG out.
//!
//! A text or menu screen has few colours, so the PNG is written with a palette where 256 are enough. PPM: `P6`, width,
//! height, the largest value (255), one white space, then three bytes a pixel (netpbm's `ppm(5)`).

use std::{
    collections::HashMap,
    fs::{self, File},
    io::BufWriter,
    path::Path,
};

use crate::HarnessError;

/// The most pixels accepted: 64 million, far beyond any card QEMU emulates.
const PIXELS_LIMIT: usize = 1 << 26;

/// A picture of the screen.
#[derive(Clone, Debug)]
pub struct Screenshot {
    /// Pixels a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Red, green, blue: `width · height · 3` bytes, row by row.
    rgb: Vec<u8>,
}

impl Screenshot {
    /// Reads a binary PPM file.
    ///
    /// # Errors
    /// When it cannot be read or is not such a file.
    pub fn from_ppm_file(file: &Path) -> Result<Self, HarnessError> {
        let bytes = fs::read(file).map_err(HarnessError::io("read", file))?;
        Self::from_ppm(&bytes).map_err(|found| HarnessError::Screenshot {
            path: file.to_owned(),
            found,
        })
    }

    fn from_ppm(bytes: &[u8]) -> Result<Self, String> {
        let mut rest = bytes;
        let mut word = || {
            while let Some((first, tail)) = rest.split_first() {
                match first {
                    b'#' => {
                        rest = &rest[rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())..]
                    }
                    b if b.is_ascii_whitespace() => rest = tail,
                    _ => break,
                }
            }
            let end = rest
                .iter()
                .position(u8::is_ascii_whitespace)
                .ok_or("its header is cut off")?;
            let (word, tail) = rest.split_at(end);
            rest = &tail[1..];
            Ok::<_, String>(String::from_utf8_lossy(word).into_owned())
        };
        let magic = word()?;
        if magic != "P6" {
            return Err(format!("it begins with `{magic}`, expected `P6`"));
        }
        let mut number = || -> Result<u32, String> {
            let word = word()?;
            word.parse().map_err(|_| format!("`{word}` is no number"))
        };
        let (width, height, depth) = (number()?, number()?, number()?);
        let pixels = (width as usize).saturating_mul(height as usize);
        if depth != 255 || pixels == 0 || pixels > PIXELS_LIMIT {
            return Err(format!("{width} x {height} pixels of depth {depth}"));
        }
        if rest.len() < pixels * 3 {
            return Err(format!(
                "{} bytes of pixels, expected {}",
                rest.len(),
                pixels * 3
            ));
        }
        Ok(Self {
            width,
            height,
            rgb: rest[..pixels * 3].to_vec(),
        })
    }

    /// The share of pixels, 0 to 1, that differ from the most frequent colour: an empty screen has 0.
    #[must_use]
    pub fn painted_share(&self) -> f64 {
        let mut counts: HashMap<&[u8], usize> = HashMap::new();
        for pixel in self.rgb.chunks_exact(3) {
            *counts.entry(pixel).or_default() += 1;
        }
        let ground = counts.values().max().copied().unwrap_or(0);
        1.0 - ground as f64 / (self.rgb.len() / 3) as f64
    }

    /// The share of pixels, 0 to 1, that differ from `other`'s; pictures of different sizes differ altogether.
    #[must_use]
    pub fn differing_share(&self, other: &Self) -> f64 {
        if (self.width, self.height) != (other.width, other.height) {
            return 1.0;
        }
        let pixels = self.rgb.chunks_exact(3).zip(other.rgb.chunks_exact(3));
        let differing = pixels.filter(|(ours, theirs)| ours != theirs).count();
        differing as f64 / (self.rgb.len() / 3) as f64
    }

    /// The share of pixels, 0 to 1, that are white among those of a part of the picture: its left and upper, and its right and lower
    /// ends are shares of the picture's size.
    #[must_use]
    pub fn white_share(&self, from: (f64, f64), to: (f64, f64)) -> f64 {
        let pixels = |share: f64, size: u32| (share.clamp(0.0, 1.0) * f64::from(size)) as usize;
        let columns = pixels(from.0, self.width) * 3..pixels(to.0, self.width) * 3;
        let rows = pixels(from.1, self.height)..pixels(to.1, self.height);
        let lines = self.rgb.chunks_exact(self.width as usize * 3);
        let lines = lines.skip(rows.start).take(rows.len());
        let (mut white, mut all) = (0_usize, 0_usize);
        for pixel in lines.flat_map(|line| line[columns.clone()].chunks_exact(3)) {
            all += 1;
            white += usize::from(pixel == [255; 3]);
        }
        white as f64 / all.max(1) as f64
    }

    /// Writes the picture as a PNG.
    ///
    /// # Errors
    /// When `file` cannot be written.
    pub fn write_png(&self, file: &Path) -> Result<(), HarnessError> {
        let out = File::create(file).map_err(HarnessError::io("create", file))?;
        let mut encoder = png::Encoder::new(BufWriter::new(out), self.width, self.height);
        encoder.set_compression(png::Compression::High);
        encoder.set_depth(png::BitDepth::Eight);
        let data = if let Some((palette, indices)) = self.indexed() {
            encoder.set_color(png::ColorType::Indexed);
            encoder.set_palette(palette);
            encoder.set_filter(png::Filter::NoFilter);
            indices
        } else {
            encoder.set_color(png::ColorType::Rgb);
            self.rgb.clone()
        };
        let failed = |error: png::EncodingError| HarnessError::Screenshot {
            path: file.to_owned(),
            found: error.to_string(),
        };
        let mut writer = encoder.write_header().map_err(failed)?;
        writer.write_image_data(&data).map_err(failed)?;
        writer.finish().map_err(failed)
    }

    /// The palette (three bytes a colour, in order of first use) and one index a pixel, if 256 colours are enough.
    fn indexed(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let mut places: HashMap<&[u8], u8> = HashMap::new();
        let mut palette = Vec::new();
        let mut indices = Vec::with_capacity(self.rgb.len() / 3);
        for pixel in self.rgb.chunks_exact(3) {
            let next = places.len();
            let index = match places.get(pixel) {
                Some(index) => *index,
                None => {
                    let index = u8::try_from(next).ok()?;
                    palette.extend_from_slice(pixel);
                    places.insert(pixel, index);
                    index
                }
            };
            indices.push(index);
        }
        Some((palette, indices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_picture_with_a_comment() {
        let shot =
            Screenshot::from_ppm(b"P6\n# by hand\n2 1\n255\n\x00\x00\x00\xff\xff\xff").unwrap();
        assert_eq!((shot.width, shot.height), (2, 1));
        assert!((shot.painted_share() - 0.5).abs() < 1e-9);
        let other = Screenshot::from_ppm(b"P6 2 1 255 \x00\x00\x00\x00\x00\x00").unwrap();
        assert!((shot.differing_share(&other) - 0.5).abs() < 1e-9);
        assert!(shot.differing_share(&shot) == 0.0);
        let (palette, indices) = shot.indexed().unwrap();
        assert_eq!(
            (palette.as_slice(), indices.as_slice()),
            (&[0, 0, 0, 255, 255, 255][..], &[0, 1][..])
        );
    }

    #[test]
    fn white_is_counted_in_a_part_alone() {
        let mut bytes = b"P6\n4 2\n255\n".to_vec();
        for pixel in [0, 0, 255, 255, 0, 0, 0, 255] {
            bytes.extend([pixel; 3]);
        }
        let shot = Screenshot::from_ppm(&bytes).unwrap();
        assert_eq!(shot.white_share((0.0, 0.0), (1.0, 1.0)), 3.0 / 8.0);
        assert_eq!(shot.white_share((0.5, 0.0), (1.0, 0.5)), 1.0);
        assert_eq!(shot.white_share((-1.0, 0.5), (0.75, 2.0)), 0.0);
        assert_eq!(shot.white_share((0.9, 0.9), (0.9, 0.9)), 0.0);
    }

    #[test]
    fn refuses_what_is_no_picture() {
        for bytes in [
            &b""[..],
            b"P5 1 1 255 x",
            b"P6 1 1 255 ",
            b"P6 9999999 9999999 255 x",
            b"P6 a 1 255 x",
            b"P6 1 1 255\n12",
        ] {
            assert!(Screenshot::from_ppm(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn a_png_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.png");
        Screenshot::from_ppm(b"P6 1 1 255\n\x01\x02\x03")
            .unwrap()
            .write_png(&file)
            .unwrap();
        assert_eq!(&fs::read(file).unwrap()[..4], b"\x89PNG");
    }
}
