//! This machine's screen as pixels: `/dev/fb0`, which every driver has (KMS, the firmware's frame buffer, VESA).
//!
//! In: rows of a guest's screen. It is shown in the middle, as many times larger as fits, without smoothing; a screen that is
//! larger is cut off at the right and the bottom.
use super::pointer::WHOLE;
use super::rfb::{PixelFormat, Screen};
use crate::house::House;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

/// Larger sides are nonsense.
const MAX_SIDE: usize = 16_384;

/// A frame buffer.
pub struct Framebuffer {
    file: File,
    width: usize,
    height: usize,
    /// Bytes from one row to the next.
    stride: usize,
    format: PixelFormat,
}

/// Where a guest's screen is on ours.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// How many times larger.
    scale: usize,
    left: usize,
    top: usize,
    /// Columns and rows of the guest's that fit.
    columns: usize,
    rows: usize,
}

impl Framebuffer {
    /// Opens the first.
    pub fn open(house: &House) -> io::Result<Self> {
        let of = |name: &str| house.read(&format!("sys/class/graphics/fb0/{name}"));
        let odd =
            |what: &str| io::Error::other(format!("the frame buffer's {what} is not understood"));
        let format = match of("bits_per_pixel").as_str() {
            "32" => PixelFormat::Xrgb8888,
            "16" => PixelFormat::Rgb565,
            _ => return Err(odd("depth")),
        };
        // What is shown, `U:1280x800p-0`; else what there is, `1280,800`.
        let (shown, all) = (of("modes"), of("virtual_size"));
        let shown = shown.lines().next().and_then(|mode| {
            let (width, rest) = mode.split_once(':')?.1.split_once('x')?;
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            Some((width.parse().ok()?, rest[..digits].parse().ok()?))
        });
        let all = || {
            let (width, height) = all.split_once(',')?;
            Some((width.parse().ok()?, height.parse().ok()?))
        };
        let (width, height): (usize, usize) = shown.or_else(all).ok_or_else(|| odd("size"))?;
        let stride: usize = of("stride").parse().map_err(|_| odd("stride"))?;
        let is_sane = (1..=MAX_SIDE).contains(&width)
            && (1..=MAX_SIDE).contains(&height)
            && (width * format.bytes()..=8 * MAX_SIDE).contains(&stride);
        if !is_sane {
            return Err(odd("size"));
        }
        let path = house.root().join("dev/fb0");
        let file = OpenOptions::new().write(true).open(path)?;
        Ok(Self {
            file,
            width,
            height,
            stride,
            format,
        })
    }

    /// How its pixels lie.
    pub fn format(&self) -> PixelFormat {
        self.format
    }

    fn place(&self, (width, height): (usize, usize)) -> Place {
        let fits = |ours: usize, theirs: usize| ours / theirs.max(1);
        let scale = fits(self.width, width)
            .min(fits(self.height, height))
            .max(1);
        let columns = width.min(self.width / scale);
        let rows = height.min(self.height / scale);
        Place {
            scale,
            left: (self.width - columns * scale) / 2,
            top: (self.height - rows * scale) / 2,
            columns,
            rows,
        }
    }

    /// The pixel of a guest's screen that is shown at this place: 0 to [`WHOLE`] from the left and from the top. Beside the guest's screen
    /// it is the nearest.
    pub fn under(&self, size: (usize, usize), (x, y): (i64, i64)) -> (i32, i32) {
        let place = self.place(size);
        let pixel = |share: i64, ours: usize, before: usize, theirs: usize| {
            let at = share.clamp(0, WHOLE) * ours as i64 / (WHOLE + 1) - before as i64;
            // Sides are at most MAX_SIDE.
            (at.max(0) / place.scale as i64)
                .min(theirs as i64 - 1)
                .max(0) as i32
        };
        (
            pixel(x, self.width, place.left, place.columns),
            pixel(y, self.height, place.top, place.rows),
        )
    }

    /// Paints these rows of the guest's screen, and what is left and right of them.
    pub fn paint(&self, screen: &Screen, rows: Range<usize>) -> io::Result<()> {
        let place = self.place(screen.size());
        let rows = rows.start..rows.end.min(place.rows);
        if rows.is_empty() {
            return Ok(());
        }
        let at = (place.top + rows.start * place.scale) * self.stride;
        let mut bytes = Vec::with_capacity(rows.len() * place.scale * self.stride);
        let pixel = self.format.bytes();
        for row in rows {
            let start = bytes.len();
            bytes.resize(start + place.left * pixel, 0);
            for dot in screen.row(row).chunks_exact(pixel).take(place.columns) {
                for _ in 0..place.scale {
                    bytes.extend_from_slice(dot);
                }
            }
            bytes.resize(start + self.stride, 0);
            for _ in 1..place.scale {
                bytes.extend_from_within(start..start + self.stride);
            }
        }
        self.file.write_all_at(&bytes, at as u64)
    }

    /// Paints everything: the guest's screen, and black around it.
    pub fn paint_all(&self, screen: &Screen) -> io::Result<()> {
        let place = self.place(screen.size());
        let bottom = place.top + place.rows * place.scale;
        for rows in [0..place.top, bottom..self.height] {
            let black = vec![0; rows.len() * self.stride];
            self.file
                .write_all_at(&black, (rows.start * self.stride) as u64)?;
        }
        self.paint(screen, 0..place.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::rfb::tests::{head, hello};
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;

    /// A house with a frame buffer of 7 x 5 pixels of 16 bits, rows of 16 bytes.
    fn house(modes: &str) -> (tempfile::TempDir, House) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sys/class/graphics/fb0");
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(dir.path().join("dev")).unwrap();
        for (name, text) in [
            ("bits_per_pixel", "16\n"),
            ("stride", "16\n"),
            ("virtual_size", "7,5\n"),
            ("modes", modes),
        ] {
            fs::write(folder.join(name), text).unwrap();
        }
        fs::write(dir.path().join("dev/fb0"), [0xEE; 16 * 5]).unwrap();
        let house = House::at(dir.path());
        (dir, house)
    }

    #[test]
    fn a_screen_is_in_the_middle_and_as_large_as_fits() {
        let (dir, house) = house("");
        let frame = Framebuffer::open(&house).unwrap();
        let socket = dir.path().join("x.vnc");
        let server = UnixListener::bind(&socket).unwrap();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut said = hello(3, 2);
            said.extend([0, 0, 0, 1]);
            said.extend(head(0, 0, 3, 2, 0));
            said.extend([1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]);
            stream.write_all(&said).unwrap();
            stream
        });
        let mut screen = Screen::connect(&socket, frame.format()).unwrap();
        screen.read().unwrap();
        frame.paint_all(&screen).unwrap();
        let shown = fs::read(dir.path().join("dev/fb0")).unwrap();
        let top = [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 0, 0, 0, 0];
        let bottom = [4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 0, 0, 0, 0];
        assert_eq!(shown, [top, top, bottom, bottom, [0; 16]].concat());
        drop(serving.join().unwrap());
    }

    #[test]
    fn places() {
        let (_dir, house) = house("U:7x4p-0\n");
        let frame = Framebuffer::open(&house).unwrap();
        let place = |scale, left, top, columns, rows| Place {
            scale,
            left,
            top,
            columns,
            rows,
        };
        assert_eq!(frame.height, 4, "what is shown, not what there is");
        assert_eq!(frame.place((2, 1)), place(3, 0, 0, 2, 1));
        assert_eq!(frame.place((3, 3)), place(1, 2, 0, 3, 3));
        assert_eq!(frame.place((9, 2)), place(1, 0, 1, 7, 2));
        assert_eq!(frame.place((0, 0)).rows, 0);
        // Two pixels of three columns each from the left, one of ours left over; one row of three.
        for (x, y, expected) in [
            (0, 0, (0, 0)),
            (WHOLE / 2, WHOLE / 2, (1, 0)),
            (WHOLE, WHOLE, (1, 0)),
            (i64::MAX, -1, (1, 0)),
        ] {
            assert_eq!(frame.under((2, 1), (x, y)), expected, "{x}, {y}");
        }
        assert_eq!(frame.under((0, 0), (WHOLE, WHOLE)), (0, 0));
    }

    #[test]
    fn nonsense_is_no_frame_buffer() {
        let (dir, house) = house("");
        for (name, text) in [
            ("stride", "13"),
            ("stride", "x"),
            ("bits_per_pixel", "8"),
            ("virtual_size", "7"),
        ] {
            let path = dir.path().join("sys/class/graphics/fb0").join(name);
            let before = fs::read(&path).unwrap();
            fs::write(&path, text).unwrap();
            assert!(Framebuffer::open(&house).is_err(), "{name}");
            fs::write(&path, before).unwrap();
        }
        fs::remove_file(dir.path().join("dev/fb0")).unwrap();
        assert!(Framebuffer::open(&house).is_err());
    }
}
