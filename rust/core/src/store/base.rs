//! What must be known before the first record of a file can be understood.

use super::column::Column;
use super::event::length;
use super::record::Reader;
use crate::error::{Error, Result};
use crate::values::Dtype;

/// A point that a checkpoint names. Counters say which ids came next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) id: u64,
    pub(super) version: u32,
    pub(super) next_group: u64,
    pub(super) next_trajectory: u64,
}

/// Counters, marks and columns, as they are where a file begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Base {
    /// The running system that wrote what follows: memory survives a killed process, not a reboot.
    pub(super) boot: [u8; 16],
    pub(super) next_group: u64,
    pub(super) next_trajectory: u64,
    pub(super) next_epoch: u64,
    pub(super) next_mark: u64,
    pub(super) version: u32,
    pub(super) marks: Vec<Mark>,
    /// The columns that a user declared; a column's number is its place.
    pub(super) columns: Vec<Column>,
}

impl Base {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = self.boot.to_vec();
        for word in [self.next_group, self.next_trajectory, self.next_epoch, self.next_mark] {
            out.extend(word.to_le_bytes());
        }
        out.extend(self.version.to_le_bytes());
        out.extend(length(self.marks.len()));
        for mark in &self.marks {
            out.extend(mark.id.to_le_bytes());
            out.extend(mark.next_group.to_le_bytes());
            out.extend(mark.next_trajectory.to_le_bytes());
            out.extend(mark.version.to_le_bytes());
        }
        out.extend(length(self.columns.len()));
        for column in &self.columns {
            out.push(column.dtype as u8);
            out.extend(length(column.name.len()));
            out.extend(column.name.as_bytes());
        }
        out
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self> {
        let mut base =
            Self { boot: reader.bytes(16)?.try_into().unwrap_or_default(), ..Self::default() };
        base.next_group = reader.count()?;
        base.next_trajectory = reader.count()?;
        base.next_epoch = reader.count()?;
        base.next_mark = reader.count()?;
        base.version = reader.u32()?;
        for _ in 0..reader.u32()? {
            let (id, next_group, next_trajectory) =
                (reader.count()?, reader.count()?, reader.count()?);
            base.marks.push(Mark { id, version: reader.u32()?, next_group, next_trajectory });
        }
        if reader.is_at_end() {
            // Format 1 had no columns.
            return Ok(base);
        }
        for _ in 0..reader.u32()? {
            let code = reader.u8()?;
            let dtype = Dtype::from_code(code).ok_or_else(|| {
                Error::Corruption(format!("a column of dtype {code}, which no version knows"))
            })?;
            base.columns.push(Column { name: reader.text()?.to_owned(), dtype });
        }
        Ok(base)
    }
}
