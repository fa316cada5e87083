//! Handing large tensors over through memory that processes share: checksums, and copies with one.

use crate::error::{Error, Result};
use crate::pages;

/// The CRC-32C of bytes.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Copies `from` to `to`, and returns the CRC-32C of what was read. Each byte is read once, and written
/// past the caches.
///
/// # Errors
///
/// [`Error::InvalidInput`], before anything is written, if the lengths differ.
pub fn copy_with_checksum(from: &[u8], to: &mut [u8]) -> Result<u32> {
    if from.len() != to.len() {
        let expected = format!("{}, as many as the source has", from.len());
        return Err(Error::invalid("target", format!("{} bytes", to.len()), expected));
    }
    let mut sum = 0;
    pages::copy_looking(to, from, |piece| sum = crc32c::crc32c_append(sum, piece));
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::num::u8::ANY;
    use proptest::prelude::*;

    /// Bit by bit, as RFC 3720 (appendix B.4) defines it.
    fn slow(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 }
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 256 }))]
        #[test]
        fn a_copy_is_the_same_bytes_with_their_checksum(
            bytes in vec(ANY, 0..20_000), skipped in 0..100_usize, before in 0..100_usize,
        ) {
            let from = &bytes[skipped.min(bytes.len())..];
            let mut memory = vec![7; before + from.len() + 100];
            let sum = copy_with_checksum(from, &mut memory[before..before + from.len()]).unwrap();
            prop_assert_eq!(sum, slow(from));
            prop_assert_eq!(checksum(from), sum);
            prop_assert_eq!(&memory[before..before + from.len()], from);
            prop_assert!(memory[..before].iter().all(|byte| *byte == 7));
            prop_assert!(memory[before + from.len()..].iter().all(|byte| *byte == 7));
        }
    }

    #[test]
    fn lengths_that_differ_are_refused() {
        let mut to = [1; 3];
        let error = copy_with_checksum(&[2; 4], &mut to).unwrap_err().to_string();
        assert_eq!(to, [1; 3]);
        assert!(error.contains("target") && error.contains('3') && error.contains('4'), "{error}");
    }
}
