//! Server-sent events, read as they come and within bounds: of a stream no more is kept than the event under way.

/// The longest line: a head takes some 500 bytes.
const MAX_LINE: usize = 4 << 10;
/// The most `data` of one event.
const MAX_DATA: usize = 8 << 10;
/// The event that is listened to.
const HEAD: &[u8] = b"head";

/// Why a stream is hung up on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    /// A line without end.
    #[error("a line is longer than {MAX_LINE} bytes")]
    LongLine,
    /// An event without end.
    #[error("an event is longer than {MAX_DATA} bytes")]
    LongEvent,
    /// Events that are none of ours.
    #[error("its events cannot be read")]
    Garbled,
    /// More than anybody has news.
    #[error("it does not stop sending")]
    Flood,
}

/// Reads lines as they come, and gives the data of each `head` event.
#[derive(Default)]
pub struct EventReader {
    /// The line under way.
    line: Vec<u8>,
    data: Vec<u8>,
    event: Vec<u8>,
}

impl EventReader {
    /// The data of the `head` events that `bytes` complete. Data that is no UTF-8 is given as what it can be read as.
    /// Errors: a bound is exceeded; the stream is of no use any more.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<Vec<String>, Nonsense> {
        let mut heads = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.keep(&bytes[..end])?;
            bytes = &bytes[end + 1..];
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                heads.extend(self.dispatch());
            } else {
                self.field(line)?;
            }
        }
        self.keep(bytes)?;
        Ok(heads)
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), Nonsense> {
        if self.line.len() + part.len() > MAX_LINE {
            return Err(Nonsense::LongLine);
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Nonsense> {
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => {
                if self.data.len() + value.len() > MAX_DATA {
                    return Err(Nonsense::LongEvent);
                }
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
            }
            b"event" => self.event = value.to_vec(),
            // Comments, ids, retries, and what others may invent.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) -> Option<String> {
        let data = std::mem::take(&mut self.data);
        let event = std::mem::take(&mut self.event);
        (event == HEAD && !data.is_empty()).then(|| String::from_utf8_lossy(&data).into_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, Nonsense> {
        EventReader::default().read(text.as_bytes())
    }

    #[test]
    fn heads_are_read_and_everything_else_is_passed_over() {
        let text = ":\n\nretry: 5\n\nid: 7\nevent: head\ndata: {\"a\":1}\n\nevent: other\ndata: x\n\ndata: y\n\nevent: head\n\n";
        assert_eq!(read(text).unwrap(), ["{\"a\":1}\n"]);
    }

    #[test]
    fn an_event_may_come_byte_by_byte_and_with_other_line_ends() {
        let mut reader = EventReader::default();
        let mut heads = Vec::new();
        for byte in b"event:head\r\ndata:a\r\ndata: b\r\n\r\nevent: he" {
            heads.extend(reader.read(&[*byte]).unwrap());
        }
        assert_eq!(heads, ["a\nb\n"]);
        assert_eq!(reader.read(b"ad\ndata: c\n\n").unwrap(), ["c\n"]);
    }

    #[test]
    fn a_line_without_end_is_refused_however_it_comes() {
        assert_eq!(read(&"x".repeat(MAX_LINE + 1)), Err(Nonsense::LongLine));
        let mut reader = EventReader::default();
        let fed = (0..=MAX_LINE).find_map(|_| reader.read(b"x").err());
        assert_eq!(fed, Some(Nonsense::LongLine));
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let line = format!("data: {}\n", "x".repeat(1000));
        assert_eq!(read(&line.repeat(9)), Err(Nonsense::LongEvent));
        assert!(
            read(&format!("{}\n", line.repeat(7)).repeat(20)).is_ok(),
            "many events are not one"
        );
    }

    #[test]
    fn nothing_of_what_was_read_is_kept() {
        let mut reader = EventReader::default();
        reader
            .read(b"event: head\ndata: a\n\nevent: tail\ndata: b\n\n")
            .unwrap();
        assert!(reader.line.is_empty() && reader.data.is_empty() && reader.event.is_empty());
    }
}
