//! Takes out of a guest's console what would reach beyond its own screen.
//!
//! A Linux terminal has private sequences that end in `]` (console_codes(4)): `ESC [ 12 ; n ]` brings another screen to the
//! front, others set the bell and blank all screens. A guest paints its screen and nothing else, so these are left out.

const ESC: u8 = 0x1b;
/// CSI in one byte.
const CSI: u8 = 0x9b;
/// Longer ones are no sequences that anybody writes.
const SEQUENCE_MAX_BYTES: usize = 128;

/// Where the filter is in the stream, which comes in pieces.
#[derive(Debug, Default)]
pub struct Tame {
    /// A sequence that has begun; empty outside of one.
    held: Vec<u8>,
    /// Whether questions to the terminal are left out, too.
    mute: bool,
}

impl Tame {
    /// For what was said long ago: whoever asked then where the cursor is, or what terminal this is (`ESC [ 6 n`, `ESC [ c`,
    /// `ESC Z`), does not wait for an answer any more, and would take it for something typed.
    pub fn for_the_past() -> Self {
        Self {
            mute: true,
            ..Self::default()
        }
    }

    /// From here on it is the present.
    pub fn arrive(&mut self) {
        self.mute = false;
    }

    /// What of `bytes`, and of what was held back before, may be shown.
    pub fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            let begun = matches!(self.held[..], [CSI, ..] | [ESC, b'[', ..]);
            match byte {
                ESC | CSI => {
                    out.append(&mut self.held);
                    self.held.push(byte);
                }
                b'[' if self.held == [ESC] => self.held.push(byte),
                // Parameters, intermediates, and control characters, which a terminal obeys in the middle of a sequence.
                0x00..=0x17 | 0x19 | 0x1c..=0x3f if begun => {
                    if self.held.len() >= SEQUENCE_MAX_BYTES {
                        self.held.clear(); // given up; nothing of it was shown
                    } else {
                        self.held.push(byte);
                    }
                }
                b']' if begun => self.held.clear(),
                b'n' | b'c' if begun && self.mute => self.held.clear(),
                b'Z' if self.mute && self.held == [ESC] => self.held.clear(),
                _ => {
                    out.append(&mut self.held);
                    out.push(byte);
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sequences_that_reach_beyond_the_screen_are_left_out() {
        for (text, shown) in [
            ("plain text\r\n", "plain text\r\n"),
            ("\x1b[1;31mred\x1b[0m [x] a]", "\x1b[1;31mred\x1b[0m [x] a]"),
            ("a\x1b[12;1]b", "ab"),
            ("a\x1b[9;0]\x1b[14]b", "ab"),
            ("a\x1b[12\x08;1]b", "ab"),
            ("a\u{9b}12;1]b", "a\u{c2}b"),
            ("\x1b[1\x1b[12;1]x", "\x1b[1x"),
            ("\x1b[2J\x1b[H\x1b[[A", "\x1b[2J\x1b[H\x1b[[A"),
            ("\u{26c4}\u{201b}x", "\u{26c4}\u{201b}x"),
        ] {
            let whole = Tame::default().pass(text.as_bytes());
            let mut tame = Tame::default();
            let parts: Vec<u8> = text.bytes().flat_map(|byte| tame.pass(&[byte])).collect();
            assert_eq!(parts, whole, "{text:?}");
            if shown.contains('\u{c2}') {
                assert_eq!(whole, b"a\xc2b");
            } else {
                assert_eq!(String::from_utf8_lossy(&whole), shown, "{text:?}");
            }
        }
        let asked = b"\x1b[999;999H\x1b[6n\x1b[>c\x1bZnew";
        let mut tame = Tame::for_the_past();
        assert_eq!(tame.pass(asked), b"\x1b[999;999Hnew");
        tame.arrive();
        assert_eq!(tame.pass(asked), asked);
        let endless = [&b"\x1b["[..], &[b'1'; 500], b"]"].concat();
        assert!(!Tame::default().pass(&endless).starts_with(b"\x1b"));
    }
}
