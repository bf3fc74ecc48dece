//! The regular files of a tar stream (ustar, GNU, PAX), with a bound on everything that is read into memory: the `tar`
//! crate reads long names and PAX records whole, however long they say they are.

use std::io::{self, Read};

use bytes::Bytes;
use tar::{EntryType, Header, PaxExtensions};
use tokio::sync::mpsc;

/// A tar is made of these.
const BLOCK: u64 = 512;
/// The longest name or PAX record set: a path has at most 1 KiB, the rest is for what is ignored.
const MAX_EXTENSION: u64 = 64 << 10;

/// What stands in front of the bytes of an entry.
pub struct Head {
    /// The name as it is written, in bytes that may not be UTF-8.
    pub path: Vec<u8>,
    /// Regular file, folder, link, …
    pub kind: EntryType,
    /// Bytes that follow.
    pub size: u64,
}

/// Reads entry after entry.
pub struct TarStream<R> {
    reader: R,
    /// Of the current entry: bytes of content, and of padding behind it.
    left: u64,
    padding: u64,
}

impl<R: Read> TarStream<R> {
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry; skips what was not read of the one before. `None` at the end. Errors: no tar, cut off.
    pub fn next(&mut self) -> io::Result<Option<Head>> {
        let (mut long_name, mut pax_name, mut pax_size) = (None, None, None);
        loop {
            let skip = self.left + self.padding;
            copy_exactly(&mut self.reader, skip)?;
            (self.left, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let kind = header.entry_type();
            let extends = kind.is_gnu_longname()
                || kind.is_gnu_longlink()
                || kind.is_pax_local_extensions()
                || kind.is_pax_global_extensions();
            let size = header.entry_size()?;
            let size = pax_size.filter(|_| !extends).unwrap_or(size);
            self.left = size;
            self.padding = size.wrapping_neg() % BLOCK;
            if !extends {
                let path = long_name.or(pax_name);
                let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
                return Ok(Some(Head { path, kind, size }));
            }
            if size > MAX_EXTENSION {
                return Err(io::Error::other(format!(
                    "a name or extension of {size} bytes; at most {MAX_EXTENSION} are read"
                )));
            }
            let mut content = Vec::new();
            self.read_to_end(&mut content)?;
            if self.left > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if kind.is_gnu_longname() {
                let end = content.iter().rposition(|byte| *byte != 0);
                content.truncate(end.map_or(0, |end| end + 1));
                long_name = Some(content);
            } else if kind.is_pax_local_extensions() {
                for record in PaxExtensions::new(&content) {
                    let record = record?;
                    match record.key_bytes() {
                        b"path" => pax_name = Some(record.value_bytes().to_vec()),
                        b"size" => {
                            let size = record.value().ok().and_then(|text| text.parse().ok());
                            let wrong =
                                || io::Error::other("the size of a PAX record is no number");
                            pax_size = Some(size.ok_or_else(wrong)?);
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.reader.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The sum counts its own field as blanks.
        let sum =
            |from: usize, to: usize| block[from..to].iter().map(|byte| u32::from(*byte)).sum();
        let found: u32 =
            u32::wrapping_add(sum(0, 148), sum(156, block.len())) + 8 * u32::from(b' ');
        if header.cksum().ok() != Some(found) {
            return Err(io::Error::other(
                "no tar: the checksum of a header is wrong",
            ));
        }
        Ok(Some(header))
    }
}

/// Reads the content of the current entry.
impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let count = self.reader.read(&mut buffer[..most])?;
        self.left -= count as u64;
        Ok(count)
    }
}

fn copy_exactly(reader: &mut impl Read, count: u64) -> io::Result<()> {
    match io::copy(&mut reader.take(count), &mut io::sink())? {
        copied if copied == count => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// The chunks of a body as a reader. A stream that ends without its end mark (`None`) was cut off: an error, not an end.
pub struct ChunkReader {
    receiver: mpsc::Receiver<Option<io::Result<Bytes>>>,
    chunk: Bytes,
}

impl ChunkReader {
    /// Reads what is sent, from a thread that may block.
    pub fn new(receiver: mpsc::Receiver<Option<io::Result<Bytes>>>) -> Self {
        let chunk = Bytes::new();
        Self { receiver, chunk }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receiver.blocking_recv() {
                Some(Some(chunk)) => self.chunk = chunk?,
                Some(None) => return Ok(0),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let taken = self.chunk.split_to(buffer.len().min(self.chunk.len()));
        buffer
            .iter_mut()
            .zip(&taken)
            .for_each(|(to, from)| *to = *from);
        Ok(taken.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn all(tar: &[u8]) -> io::Result<Vec<(String, Vec<u8>)>> {
        let (mut stream, mut found) = (TarStream::new(tar), Vec::new());
        while let Some(head) = stream.next()? {
            let mut content = Vec::new();
            if head.size != 3 {
                stream.read_to_end(&mut content)?;
                assert_eq!(content.len() as u64, head.size);
            }
            found.push((String::from_utf8(head.path).unwrap(), content));
        }
        Ok(found)
    }

    fn header(kind: EntryType, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header
    }

    #[test]
    fn names_of_every_form_are_read_and_content_that_nobody_wants_is_skipped() {
        let mut tar = tar::Builder::new(Vec::new());
        let long = format!("{}/{}", "d".repeat(200), "n".repeat(100));
        for (path, text) in [("a", "x"), (&long, "yy"), ("skipped", "zzz")] {
            let mut header = header(EntryType::Regular, text.len() as u64);
            tar.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        let size = b"5".as_slice();
        tar.append_pax_extensions([("path", b"from pax".as_slice()), ("size", size)])
            .unwrap();
        // The header of an 8 GiB file in the PAX form says 0.
        let mut short = header(EntryType::Regular, 0);
        short.set_path("short").unwrap();
        short.set_cksum();
        let mut bytes = tar.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        bytes.extend_from_slice(short.as_bytes());
        bytes.extend_from_slice(b"hello");
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let wanted = [
            ("a", "x"),
            (&long, "yy"),
            ("skipped", ""),
            ("from pax", "hello"),
        ];
        let wanted = wanted.map(|(path, text)| (path.to_owned(), text.into()));
        assert_eq!(all(&bytes).unwrap(), wanted, "without an end mark");
        bytes.resize(bytes.len() + 1024, 0);
        assert_eq!(all(&bytes).unwrap(), wanted);
        assert!(all(&bytes[..bytes.len() - 1024 - 100]).is_err(), "cut off");
        bytes[0] ^= 1;
        assert!(all(&bytes).is_err(), "a wrong checksum");
    }

    #[test]
    fn an_extension_that_claims_gigabytes_is_refused_before_it_is_read() {
        for kind in [
            EntryType::GNULongName,
            EntryType::GNULongLink,
            EntryType::XHeader,
            EntryType::XGlobalHeader,
        ] {
            let mut header = header(kind, 8 << 30);
            header.set_cksum();
            let endless = header.as_bytes().chain(io::repeat(b'a'));
            let error = TarStream::new(endless).next().err().unwrap();
            assert!(error.to_string().contains("at most"), "{error}");
        }
    }
}
