//! A sampler's state as bytes, little endian:
//!
//! magic [8], format u32, version u32, n u64, digest of the prompt ids u64, γ f64, then for each
//! prompt its decayed rewards f64, their decayed count f64 and their version u32, then a checksum
//! u64 over all of it.

use super::SuccessRates;
use super::rates::Evidence;
use crate::noise::splitmix64;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"k15smplr";
const FORMAT: u32 = 1;

pub(super) fn encode(ids: &[i64], rates: &SuccessRates) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(48 + 20 * ids.len());
    bytes.extend(MAGIC);
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend(rates.version.to_le_bytes());
    bytes.extend((ids.len() as u64).to_le_bytes());
    bytes.extend(digest_of_ids(ids).to_le_bytes());
    bytes.extend(rates.gamma().to_le_bytes());
    for evidence in &rates.evidence {
        bytes.extend(evidence.reward.to_le_bytes());
        bytes.extend(evidence.count.to_le_bytes());
        bytes.extend(evidence.version.to_le_bytes());
    }
    bytes.extend(digest(&bytes).to_le_bytes());
    bytes
}

/// Reads a state into the tracker of the same prompts; on an error the tracker is as it was.
pub(super) fn decode(bytes: &[u8], ids: &[i64], rates: &mut SuccessRates) -> Result<()> {
    let refuse =
        |expected: String| Err(Error::invalid("state", format!("{} bytes", bytes.len()), expected));
    let mut rest = Reader(bytes);
    let (Some(magic), Some(format)) = (rest.take::<8>(), rest.u32()) else {
        return refuse("what state() returned; these are too few".into());
    };
    if &magic != MAGIC {
        return refuse("what state() returned; these begin with something else".into());
    }
    if format != FORMAT {
        return refuse(format!("a state of format {FORMAT}; this is of format {format}"));
    }
    let (body, checksum) = bytes.split_at(bytes.len() - 8);
    if Reader(checksum).u64() != Some(digest(body)) {
        return refuse("a state whose checksum matches; these bytes are damaged or cut".into());
    }
    let header = (rest.u32(), rest.u64(), rest.u64(), rest.f64());
    let (Some(version), Some(n), Some(ids_digest), Some(gamma)) = header else {
        return refuse("what state() returned; these are too few".into());
    };
    if n != ids.len() as u64 || ids_digest != digest_of_ids(ids) {
        let given = ids.len();
        return refuse(format!(
            "a state of the same prompts in the same order; it is of {n}, the sampler has {given}"
        ));
    }
    if gamma.to_bits() != rates.gamma().to_bits() {
        let own = rates.gamma();
        return refuse(format!("a state with gamma = {own}, as the sampler has; it has {gamma}"));
    }
    let mut evidence = Vec::with_capacity(ids.len());
    for _ in ids {
        let (Some(reward), Some(count), Some(version)) = (rest.f64(), rest.f64(), rest.u32())
        else {
            return refuse("an entry for each prompt".into());
        };
        evidence.push(Evidence { reward, count, version });
    }
    rates.version = version;
    rates.evidence = evidence;
    Ok(())
}

fn digest_of_ids(ids: &[i64]) -> u64 {
    ids.iter().fold(0, |hash, id| splitmix64(hash ^ id.cast_unsigned()))
}

/// A checksum: each word goes through SplitMix64's bijection, so that no single change is lost.
fn digest(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(bytes.len() as u64, |hash, word| splitmix64(hash ^ word))
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn f64(&mut self) -> Option<f64> {
        self.take().map(f64::from_le_bytes)
    }
}
