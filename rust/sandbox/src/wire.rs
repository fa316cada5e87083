//! Numbers and strings in a message between a slot and its spawner: little-endian, lengths first.
//!
//! Both ends are the same build, so there are no versions. A reader never trusts a length.

use std::ffi::CStr;

/// Writes a message.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// A message whose first byte is `kind`.
    pub(crate) fn new(kind: u8) -> Self {
        let mut bytes = Vec::with_capacity(1024);
        bytes.push(kind);
        Self(bytes)
    }

    pub(crate) fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(crate) fn word(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn long(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn count(&mut self, value: usize) {
        self.word(u32::try_from(value).unwrap_or(u32::MAX));
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.0.extend_from_slice(value);
    }

    /// A string with a NUL after it, so that the reader can use it in place. `value` has none inside.
    pub(crate) fn string(&mut self, value: &str) {
        self.count(value.len() + 1);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

/// Reads a message; `None` from any of its calls means that the message is cut or wrong.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(head)
    }

    /// What was not read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    pub(crate) fn word(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    pub(crate) fn long(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    pub(crate) fn count(&mut self) -> Option<usize> {
        self.word().map(|value| value as usize)
    }

    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.count()?;
        self.take(length)
    }

    pub(crate) fn string(&mut self) -> Option<&'a CStr> {
        CStr::from_bytes_with_nul(self.bytes()?).ok()
    }

    pub(crate) fn strings(&mut self) -> Option<Vec<&'a CStr>> {
        let count = self.count()?;
        let mut strings = Vec::with_capacity(count.min(self.0.len()));
        for _ in 0..count {
            strings.push(self.string()?);
        }
        Some(strings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::new(7);
        writer.byte(1);
        writer.word(2);
        writer.long(3);
        writer.bytes(b"four");
        writer.string("five");
        let mut reader = Reader::new(writer.as_slice());
        assert_eq!(reader.byte(), Some(7));
        assert_eq!(reader.byte(), Some(1));
        assert_eq!(reader.word(), Some(2));
        assert_eq!(reader.long(), Some(3));
        assert_eq!(reader.bytes(), Some(&b"four"[..]));
        assert_eq!(reader.string(), Some(c"five"));
        assert_eq!(reader.byte(), None);
    }

    #[test]
    fn a_cut_message_is_refused_at_any_length() {
        let mut writer = Writer::new(0);
        writer.string("a string");
        let whole = writer.as_slice();
        for length in 0..whole.len() {
            let mut reader = Reader::new(&whole[..length]);
            assert!(reader.byte().and_then(|_| reader.string()).is_none());
        }
    }
}
