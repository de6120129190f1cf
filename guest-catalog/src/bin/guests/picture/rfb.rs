//! A guest's screen by RFB (RFC 6143), as QEMU speaks it on a Unix socket: the client's side, as much of it as a screen needs.
//!
//! QEMU is believed no more than any guest that might have taken it over: sizes are bounded, rectangles have to lie inside, and what
//! has begun has to come to its end within a limit. Of QEMU's additions (RFC 6143 lists their numbers, §7.8.1 and IANA's registry) two
//! are used: keys by their place on the keyboard, whatever is printed on them, and mice that tell how far they went.
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// Security type "None": who may open the socket may use it (§7.1.2).
const SECURITY_NONE: u8 = 1;
/// Most pixels of a screen (4096 x 2160), 35 MB.
const MAX_PIXELS: usize = 4096 * 2160;
const MAX_SIDE: usize = 8192;
/// Most bytes of a name or of a clipboard, which are passed over.
const MAX_TEXT_BYTES: u32 = 1 << 20;
/// What has begun to come has to be there after this.
const LIMIT: Duration = Duration::from_secs(5);

// Encodings (§7.7, §7.8.2) and QEMU's.
const RAW: i32 = 0;
const DESKTOP_SIZE: i32 = -223;
const POINTER_TYPE: i32 = -257;
const EXTENDED_KEYS: i32 = -258;

/// How pixels lie in a frame buffer, and how QEMU is asked to send them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PixelFormat {
    /// 32 bits: blue, green, red, nothing.
    Xrgb8888,
    /// 16 bits: five of red, six of green, five of blue.
    Rgb565,
}

impl PixelFormat {
    /// Bytes of a pixel.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Xrgb8888 => 4,
            Self::Rgb565 => 2,
        }
    }

    /// PIXEL_FORMAT (§7.4): bits, depth, little endian, true colour, maxima and shifts of red, green and blue.
    const fn encoded(self) -> [u8; 16] {
        match self {
            Self::Xrgb8888 => [32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0],
            Self::Rgb565 => [16, 16, 0, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0],
        }
    }
}

/// A guest's screen, and the way to its keyboard and mouse.
pub struct Screen {
    stream: UnixStream,
    format: PixelFormat,
    width: usize,
    height: usize,
    pixels: Vec<u8>,
    takes_keys: bool,
    is_absolute: bool,
    pointer: (i32, i32),
    buttons: u8,
}

/// What a message changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// It answers what was asked: ask again.
    pub is_update: bool,
    /// Rows that are new.
    pub rows: Range<usize>,
    /// The screen has another size.
    pub resized: bool,
}

fn odd(what: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.into())
}

impl Screen {
    /// Connects to the server at `socket`.
    pub fn connect(socket: &Path, format: PixelFormat) -> io::Result<Self> {
        Self::over(UnixStream::connect(socket)?, format)
    }

    /// The same over a connection (§7.1 to §7.3).
    fn over(mut stream: UnixStream, format: PixelFormat) -> io::Result<Self> {
        stream.set_read_timeout(Some(LIMIT))?;
        stream.set_write_timeout(Some(LIMIT))?;
        let mut version = [0; VERSION.len()];
        stream.read_exact(&mut version)?;
        if !version.starts_with(b"RFB 003.") {
            return Err(odd("this is no RFB server"));
        }
        stream.write_all(VERSION)?;
        let mut types = vec![0; usize::from(byte(&mut stream)?)];
        stream.read_exact(&mut types)?;
        if !types.contains(&SECURITY_NONE) {
            return Err(odd("the screen wants a password"));
        }
        stream.write_all(&[SECURITY_NONE])?;
        if u32::from_be_bytes(array(&mut stream)?) != 0 {
            return Err(odd("the screen refuses us"));
        }
        stream.write_all(&[1])?; // others may look, too
        let [w0, w1, h0, h1] = array(&mut stream)?;
        let _theirs: [u8; 16] = array(&mut stream)?;
        let name_bytes = u32::from_be_bytes(array(&mut stream)?);
        let mut screen = Self {
            stream,
            format,
            width: 0,
            height: 0,
            pixels: Vec::new(),
            takes_keys: false,
            is_absolute: true,
            pointer: (0, 0),
            buttons: 0,
        };
        screen.pass_over(name_bytes)?;
        screen.resize(u16::from_be_bytes([w0, w1]), u16::from_be_bytes([h0, h1]))?;
        let mut hello = vec![0, 0, 0, 0]; // SetPixelFormat
        hello.extend(format.encoded());
        let encodings = [RAW, DESKTOP_SIZE, POINTER_TYPE, EXTENDED_KEYS];
        hello.extend([2, 0, 0, encodings.len() as u8]); // SetEncodings
        hello.extend(encodings.iter().flat_map(|number| number.to_be_bytes()));
        screen.stream.write_all(&hello)?;
        Ok(screen)
    }

    /// Width and height in pixels.
    pub fn size(&self) -> (usize, usize) {
        (self.width, self.height)
    }

    /// A row of pixels.
    pub fn row(&self, row: usize) -> &[u8] {
        let bytes = self.width * self.format.bytes();
        &self.pixels[row * bytes..][..bytes]
    }

    /// Asks for what is new, or for everything.
    pub fn ask(&mut self, everything: bool) -> io::Result<()> {
        let mut message = vec![3, u8::from(!everything), 0, 0, 0, 0];
        // Sides are at most MAX_SIDE.
        message.extend((self.width as u16).to_be_bytes());
        message.extend((self.height as u16).to_be_bytes());
        self.stream.write_all(&message)
    }

    /// Presses or releases a key: its scan code of set 1, with 0x80 in place of a leading E0.
    pub fn key(&mut self, scan_code: u8, pressed: bool) -> io::Result<()> {
        if !self.takes_keys {
            return Ok(()); // not said yet
        }
        let mut message = vec![255, 0, 0, u8::from(pressed), 0, 0, 0, 0];
        message.extend(u32::from(scan_code).to_be_bytes());
        self.stream.write_all(&message)
    }

    /// Moves the mouse and presses its buttons: 1 left, 2 middle, 4 right, 8 and 16 the wheel.
    pub fn mouse(&mut self, right: i32, down: i32, buttons: u8) -> io::Result<()> {
        let (x, y) = if self.is_absolute {
            let limit = |at: i32, size: usize| at.clamp(0, size.saturating_sub(1) as i32);
            let x = limit(self.pointer.0.saturating_add(right), self.width);
            let y = limit(self.pointer.1.saturating_add(down), self.height);
            self.pointer = (x, y);
            (x, y)
        } else {
            let step = |by: i32| 0x7FFF + by.clamp(-0x7FFF, 0x7FFF);
            (step(right), step(down))
        };
        self.buttons = buttons;
        let mut message = vec![5, buttons];
        message.extend((x as u16).to_be_bytes());
        message.extend((y as u16).to_be_bytes());
        self.stream.write_all(&message)
    }

    /// Puts the mouse on a pixel. A guest whose mouse tells ways is told the way from where the pointer was put last.
    pub fn point(&mut self, (x, y): (i32, i32), buttons: u8) -> io::Result<()> {
        let way = (
            x.saturating_sub(self.pointer.0),
            y.saturating_sub(self.pointer.1),
        );
        if !self.is_absolute {
            self.pointer = (x, y);
        }
        self.mouse(way.0, way.1, buttons)
    }

    /// Buttons as they were last said to be.
    pub fn buttons(&self) -> u8 {
        self.buttons
    }

    /// Reads one message (§7.6).
    pub fn read(&mut self) -> io::Result<Change> {
        match byte(&mut self.stream)? {
            0 => return self.update(),
            1 => {
                let [_, _, _, n0, n1] = array(&mut self.stream)?;
                self.pass_over(6 * u32::from(u16::from_be_bytes([n0, n1])))?;
            }
            2 => {} // the bell
            3 => {
                let [_, _, _, l0, l1, l2, l3] = array(&mut self.stream)?;
                self.pass_over(u32::from_be_bytes([l0, l1, l2, l3]))?;
            }
            other => return Err(odd(format!("the screen sent a message of kind {other}"))),
        }
        Ok(Change::default())
    }

    fn update(&mut self) -> io::Result<Change> {
        let mut change = Change {
            is_update: true,
            rows: self.height..0,
            resized: false,
        };
        let [_, n0, n1] = array(&mut self.stream)?;
        for _ in 0..u16::from_be_bytes([n0, n1]) {
            let head: [u8; 12] = array(&mut self.stream)?;
            let number = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
            let [x, y, width, height] = [0, 2, 4, 6].map(number);
            match i32::from_be_bytes([head[8], head[9], head[10], head[11]]) {
                RAW => {
                    self.rectangle(x.into(), y.into(), width.into(), height.into(), &mut change)?
                }
                DESKTOP_SIZE => {
                    self.resize(width, height)?;
                    change.resized = true;
                    change.rows = 0..self.height;
                }
                POINTER_TYPE => self.is_absolute = x != 0,
                EXTENDED_KEYS => self.takes_keys = true,
                other => return Err(odd(format!("the screen sent encoding {other}"))),
            }
        }
        Ok(change)
    }

    fn rectangle(
        &mut self,
        x: usize,
        y: usize,
        width: usize,
        height: usize,
        change: &mut Change,
    ) -> io::Result<()> {
        if x + width > self.width || y + height > self.height {
            return Err(odd(format!(
                "the screen of {} x {} sent {width} x {height} pixels at {x}, {y}",
                self.width, self.height
            )));
        }
        let pixel = self.format.bytes();
        for row in y..y + height {
            let at = (row * self.width + x) * pixel;
            self.stream
                .read_exact(&mut self.pixels[at..at + width * pixel])?;
        }
        change.rows.start = change.rows.start.min(y);
        change.rows.end = change.rows.end.max(y + height);
        Ok(())
    }

    fn resize(&mut self, width: u16, height: u16) -> io::Result<()> {
        let (width, height) = (usize::from(width), usize::from(height));
        if width.max(height) > MAX_SIDE || width * height > MAX_PIXELS {
            return Err(odd(format!(
                "the screen has {width} x {height} pixels; at most {MAX_PIXELS} are shown"
            )));
        }
        (self.width, self.height) = (width, height);
        self.pixels = vec![0; width * height * self.format.bytes()];
        Ok(())
    }

    fn pass_over(&mut self, bytes: u32) -> io::Result<()> {
        if bytes > MAX_TEXT_BYTES {
            return Err(odd(format!("the screen sent a text of {bytes} bytes")));
        }
        let mut rest = (&mut self.stream).take(bytes.into());
        match io::copy(&mut rest, &mut io::sink())? {
            count if count == u64::from(bytes) => Ok(()),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl AsFd for Screen {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn byte(stream: &mut UnixStream) -> io::Result<u8> {
    array(stream).map(|[byte]| byte)
}

fn array<const N: usize>(stream: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::thread;

    /// What a server says first for a screen of `width` x `height`.
    pub fn hello(width: u16, height: u16) -> Vec<u8> {
        let mut said = VERSION.to_vec();
        said.extend([1, SECURITY_NONE, 0, 0, 0, 0]);
        said.extend(width.to_be_bytes());
        said.extend(height.to_be_bytes());
        said.extend([0; 16]);
        said.extend([0, 0, 0, 4]);
        said.extend(b"QEMU");
        said
    }

    /// A rectangle's head.
    pub fn head(x: u16, y: u16, width: u16, height: u16, encoding: i32) -> Vec<u8> {
        let mut bytes: Vec<u8> = [x, y, width, height]
            .iter()
            .flat_map(|number| number.to_be_bytes())
            .collect();
        bytes.extend(encoding.to_be_bytes());
        bytes
    }

    fn served(said: &[u8]) -> (io::Result<Screen>, UnixStream) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(said).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        (Screen::over(ours, PixelFormat::Rgb565), theirs)
    }

    #[test]
    fn rectangles_sizes_and_keys() {
        let mut said = hello(3, 2);
        said.extend([2]); // the bell
        said.extend([3, 0, 0, 0, 0, 0, 0, 2, b'h', b'i']);
        said.extend([0, 0, 0, 3]);
        said.extend(head(0, 0, 0, 0, EXTENDED_KEYS));
        said.extend(head(0, 0, 0, 0, POINTER_TYPE));
        said.extend(head(1, 1, 2, 1, RAW));
        said.extend([1, 2, 3, 4]);
        said.extend([0, 0, 0, 1]);
        said.extend(head(0, 0, 5, 4, DESKTOP_SIZE));
        let (screen, mut theirs) = served(&said);
        let mut screen = screen.unwrap();
        screen.key(30, true).unwrap(); // it has not said that it takes keys: nothing is sent
        assert_eq!(screen.read().unwrap(), Change::default());
        assert_eq!(screen.read().unwrap(), Change::default());
        let change = screen.read().unwrap();
        assert_eq!((change.rows, change.resized), (1..2, false));
        assert_eq!(
            (screen.row(0), screen.row(1)),
            (&[0; 6][..], &[0, 0, 1, 2, 3, 4][..])
        );
        let change = screen.read().unwrap();
        assert_eq!(
            (change.rows, change.resized, screen.size()),
            (0..4, true, (5, 4))
        );
        screen.key(0xC8, true).unwrap();
        screen.mouse(-3, 2, 1).unwrap();
        screen.ask(true).unwrap();
        drop(screen);
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).unwrap();
        let end = [
            255, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xC8, 5, 1, 0x7F, 0xFC, 0x80, 1, 3, 0, 0, 0, 0, 0,
            0, 5, 0, 4,
        ];
        assert!(heard.ends_with(&end), "{heard:?}");
        assert!(
            !heard
                .windows(12)
                .any(|part| part == [255, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 30])
        );
    }

    #[test]
    fn lies_are_refused() {
        let big = [&[0, 0, 0, 1][..], &head(2, 1, 2, 1, RAW)].concat();
        let mut huge = hello(8192, 8192);
        huge.truncate(huge.len()); // refused by its size alone
        for (said, more, what) in [
            (b"HTTP/1.1 400 Bad".to_vec(), vec![], "no RFB server"),
            ([&VERSION[..], &[1, 2]].concat(), vec![], "wants a password"),
            (
                [&VERSION[..], &[1, 1, 0, 0, 0, 1]].concat(),
                vec![],
                "refuses us",
            ),
            (huge, vec![], "8192 x 8192 pixels"),
            (hello(3, 2), big, "sent 2 x 1 pixels at 2, 1"),
            (
                hello(3, 2),
                [&[0, 0, 0, 1][..], &head(0, 0, 1, 1, 16)].concat(),
                "encoding 16",
            ),
            (hello(3, 2), vec![9], "kind 9"),
            (
                hello(3, 2),
                vec![3, 0, 0, 0, 255, 255, 255, 255],
                "4294967295 bytes",
            ),
            (hello(3, 2), vec![0, 0], "failed to fill"),
        ] {
            let (screen, _theirs) = served(&[said, more].concat());
            let error = screen.and_then(|mut screen| screen.read()).unwrap_err();
            assert!(error.to_string().contains(what), "{what}: {error}");
        }
    }

    /// A server that stops in the middle is given up.
    #[test]
    fn a_silent_server_is_left() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let waiting = thread::spawn(move || Screen::over(ours, PixelFormat::Xrgb8888).err());
        thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(theirs);
        assert!(waiting.join().unwrap().is_some());
    }
}
