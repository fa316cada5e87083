//! Per-token columns that a user declares: reference log-probs, advantages, values.
//!
//! # Design
//!
//! A column's name and type are in the base of each file, so they outlive every file; a record of
//! values says the column's number and a range of the response. Values come after the tokens, in
//! any order and as often as is wanted: what is read is the newest value of each token, 0 where
//! there is none. They are dated as scores are, so that a rewind takes back what was computed under
//! weights that are gone.

use super::Store;
use super::file::Location;
use super::record::{self, Kind, Reader};
use super::state::{Piece, Trajectory};
use crate::error::{Error, Result};
use crate::values::{Dtype, Values};

/// A column that a user declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// The type of its entries.
    pub dtype: Dtype,
}

/// Values of a column for tokens of one trajectory, as [`Store::set_column_many`] takes them.
#[derive(Clone, Copy, Debug)]
pub struct ColumnChunk<'a> {
    /// Whose tokens.
    pub trajectory_id: u64,
    /// The first token, as a place of the response.
    pub offset: u32,
    /// The values, little-endian, of the column's type.
    pub bytes: &'a [u8],
}

/// The most columns of a store: their names must fit the base of the smallest file.
const MOST_COLUMNS: usize = 32;
const LONGEST_NAME: usize = 48;

/// Arrays of a batch that are there without being declared.
const BUILT_IN: [&str; 14] = [
    "tokens",
    "log_probs",
    "input_ids",
    "position_ids",
    "cu_seqlens",
    "loss_mask",
    "rollout_log_probs",
    "versions",
    "rewards",
    "group_ids",
    "trajectory_ids",
    "prompt_ids",
    "prompt_lengths",
    "finish_reasons",
];

/// Bytes in front of the values in the payload of a record of a column.
pub(super) const COLUMN_FIELDS: usize = 16;

/// The content of a record of a column, but for the values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ColumnEvent {
    pub(super) trajectory_id: u64,
    pub(super) column: u16,
    pub(super) dtype: Dtype,
    pub(super) offset: u32,
    pub(super) n: u32,
    /// Of values that are written again: the newest policy version of their time.
    pub(super) under: u32,
}

impl ColumnEvent {
    pub(super) fn encode(&self) -> [u8; COLUMN_FIELDS] {
        let mut out = [0; COLUMN_FIELDS];
        out[0..2].copy_from_slice(&self.column.to_le_bytes());
        out[2] = self.dtype as u8;
        out[4..8].copy_from_slice(&self.offset.to_le_bytes());
        out[8..12].copy_from_slice(&self.n.to_le_bytes());
        out[12..16].copy_from_slice(&self.under.to_le_bytes());
        out
    }

    /// All but the values.
    pub(super) fn decode_fields(trajectory_id: u64, reader: &mut Reader<'_>) -> Result<Self> {
        let head = reader.bytes(4)?;
        let (column, code) = (u16::from_le_bytes([head[0], head[1]]), head[2]);
        let dtype = Dtype::from_code(code).ok_or_else(|| {
            Error::Corruption(format!("values of dtype {code}, which no version knows"))
        })?;
        let (offset, n, under) = (reader.u32()?, reader.u32()?, reader.u32()?);
        Ok(Self { trajectory_id, column, dtype, offset, n, under })
    }

    /// Bytes of its values.
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.n) * self.dtype.width() as u64
    }

    /// Where its values are, once the record is at a place of the log.
    pub(super) fn piece(&self, at: Location, size: u64, under: u32) -> Piece {
        let &Self { column, offset, n, .. } = self;
        Piece { at, column, offset, n, under, size }
    }

    /// Refuse values of a column that was never declared so.
    pub(super) fn check(&self, columns: &[Column]) -> Result<()> {
        let column = columns.get(usize::from(self.column));
        if column.is_some_and(|column| column.dtype == self.dtype) {
            return Ok(());
        }
        Err(Error::Corruption(format!(
            "values of column {} as {}, which was never declared so",
            self.column,
            self.dtype.name()
        )))
    }
}

/// The columns of a store that is opened with `wanted`: those that are there, then what is new.
pub(super) fn merge(there: &[Column], wanted: &[Column]) -> Result<Vec<Column>> {
    let mut columns = there.to_vec();
    for column in wanted {
        let name = column.name.as_str();
        let mut letters = name.chars();
        let is_name = letters.next().is_some_and(|first| first.is_ascii_alphabetic())
            && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
        if !is_name || name.len() > LONGEST_NAME || BUILT_IN.contains(&name) {
            return Err(Error::invalid(
                "columns",
                format!("{name:?}"),
                format!(
                    "a name of at most {LONGEST_NAME} ASCII letters, digits and underscores that \
                     begins with a letter and that no array of a batch has already"
                ),
            ));
        }
        match columns.iter().find(|known| known.name == name) {
            Some(known) if known.dtype == column.dtype => {}
            Some(known) => {
                return Err(Error::invalid(
                    "columns",
                    format!("{name}: {}", column.dtype.name()),
                    format!("{}, as the store has this column already", known.dtype.name()),
                ));
            }
            None => columns.push(column.clone()),
        }
    }
    if columns.len() > MOST_COLUMNS {
        let expected = format!("at most {MOST_COLUMNS} in one store");
        return Err(Error::invalid("columns", format!("{} columns", columns.len()), expected));
    }
    Ok(columns)
}

impl Trajectory {
    /// How many tokens have a value in the column.
    pub(super) fn covered(&self, column: u16) -> u32 {
        let pieces = self.pieces.iter().filter(|piece| piece.column == column);
        let mut ranges: Vec<(u32, u32)> =
            pieces.map(|piece| (piece.offset, piece.offset + piece.n)).collect();
        ranges.sort_unstable();
        let (mut covered, mut end) = (0, 0);
        for (from, to) in ranges {
            covered += to.saturating_sub(from.max(end));
            end = end.max(to);
        }
        covered
    }
}

impl Store {
    /// The columns that were declared, in this or an earlier opening.
    pub fn columns(&self) -> &[Column] {
        &self.index.base.columns
    }

    /// Set the values of a column for a range of a response. See [`Store::set_column_many`].
    pub fn set_column(
        &mut self,
        trajectory_id: u64,
        name: &str,
        offset: u32,
        dtype: Dtype,
        bytes: &[u8],
    ) -> Result<()> {
        self.set_column_many(name, dtype, &[ColumnChunk { trajectory_id, offset, bytes }])
    }

    /// Set the values of a column for tokens that are stored, finished or not, acknowledged
    /// together. Newer values replace older ones; the same values again do nothing.
    ///
    /// All chunks are checked before the first is written. If the store is full in between, those
    /// before are there, and the same call can be made again.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a column that was not declared with this type and for values of
    /// tokens that are not there, [`Error::Capacity`] if the store is full.
    pub fn set_column_many(
        &mut self,
        name: &str,
        dtype: Dtype,
        chunks: &[ColumnChunk<'_>],
    ) -> Result<()> {
        let (column, declared) = self.column_of(name)?;
        if declared != dtype {
            let expected = format!("{}, as column {name} was declared", declared.name());
            return Err(Error::invalid("values", dtype.name(), expected));
        }
        let width = dtype.width();
        for chunk in chunks {
            let length = self.trajectory_of(chunk.trajectory_id)?.length;
            let n = chunk.bytes.len() / width;
            if chunk.bytes.len() % width != 0 || chunk.offset as usize + n > length as usize {
                let id = chunk.trajectory_id;
                return Err(Error::invalid(
                    "values",
                    format!("{n} entries from {}", chunk.offset),
                    format!("values of the {length} response tokens that trajectory {id} has"),
                ));
            }
        }
        let largest = self.log.largest_payload(self.index.base.encode().len());
        let most = (largest - COLUMN_FIELDS) / width * width;
        for chunk in chunks {
            let mut offset = chunk.offset;
            for bytes in chunk.bytes.chunks(most) {
                let n = u32::try_from(bytes.len() / width).unwrap_or(u32::MAX);
                let trajectory_id = chunk.trajectory_id;
                if !self.has_values(trajectory_id, column, offset, bytes)? {
                    let event = ColumnEvent { trajectory_id, column, dtype, offset, n, under: 0 };
                    self.write_data(Kind::Column, trajectory_id, &[&event.encode(), bytes])?;
                }
                offset += n;
            }
        }
        // Making room may have evicted a group that nobody has leased.
        for chunk in chunks {
            self.trajectory_of(chunk.trajectory_id)?;
        }
        self.acknowledge()
    }

    /// The type of a column.
    pub fn dtype_of(&self, name: &str) -> Result<Dtype> {
        self.column_of(name).map(|found| found.1)
    }

    /// The number and the type of a column.
    pub(super) fn column_of(&self, name: &str) -> Result<(u16, Dtype)> {
        let columns = &self.index.base.columns;
        let place = columns.iter().position(|column| column.name == name);
        let number = place.and_then(|place| u16::try_from(place).ok());
        let found = number.and_then(|number| Some((number, columns.get(place?)?.dtype)));
        found.ok_or_else(|| {
            let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            let names = if names.is_empty() { "none".into() } else { names.join(", ") };
            let expected = format!("a column that was declared at an opening: {names}");
            Error::invalid("name", format!("{name:?}"), expected)
        })
    }

    /// The values of a column for a whole response.
    pub(super) fn values_of(&self, trajectory: &Trajectory, column: u16, dtype: Dtype) -> Values {
        let mut values = Values::zeros(dtype, trajectory.length as usize);
        let width = dtype.width();
        for piece in trajectory.pieces.iter().filter(|piece| piece.column == column) {
            let from = piece.offset as usize * width;
            let bytes = self.values(piece, width);
            values.bytes_mut()[from..from + bytes.len()].copy_from_slice(bytes);
        }
        values
    }

    /// The values of one piece, in place.
    pub(super) fn values(&self, piece: &Piece, width: usize) -> &[u8] {
        let bytes = piece.n as usize * width;
        &self.log.payload(piece.at, COLUMN_FIELDS + bytes)[COLUMN_FIELDS..]
    }

    /// Whether the newest piece that touches a range has exactly these values for it.
    fn has_values(&self, id: u64, column: u16, offset: u32, bytes: &[u8]) -> Result<bool> {
        let trajectory = self.trajectory_of(id)?;
        let width = self.index.base.columns.get(usize::from(column)).map_or(1, |c| c.dtype.width());
        let end = offset as usize + bytes.len() / width;
        let touches = |piece: &&Piece| {
            piece.column == column
                && (piece.offset as usize) < end
                && offset < piece.offset + piece.n
        };
        let newest = trajectory.pieces.iter().rev().find(touches);
        Ok(bytes.is_empty()
            || newest.is_some_and(|piece| {
                // What a rewind takes back of the piece it takes back of these values too.
                let holds = piece.offset <= offset
                    && end <= (piece.offset + piece.n) as usize
                    && piece.under <= self.index.base.version;
                let from = (offset.saturating_sub(piece.offset)) as usize * width;
                holds && self.values(piece, width)[from..from + bytes.len()] == *bytes
            }))
    }

    /// Write values of columns of a trajectory again, in as few pieces as the files allow.
    pub(super) fn put_pieces(&mut self, id: u64, pieces: &[Piece]) -> Result<()> {
        for piece in pieces {
            let dtype = self.index.base.columns.get(usize::from(piece.column)).map(|c| c.dtype);
            let Some(dtype) = dtype else { continue };
            let width = dtype.width();
            let bytes = self.values(piece, width).to_vec();
            let (mut offset, mut rest) = (piece.offset, bytes.as_slice());
            while !rest.is_empty() {
                let most = self.room_for_piece(record::size(COLUMN_FIELDS) + 8)? / width * width;
                let (head, tail) = rest.split_at(most.min(rest.len()));
                let n = u32::try_from(head.len() / width).unwrap_or(u32::MAX);
                let &Piece { column, under, .. } = piece;
                let event = ColumnEvent { trajectory_id: id, column, dtype, offset, n, under };
                self.put(Kind::MovedColumn, id, &[&event.encode(), head])?;
                (offset, rest) = (offset + n, tail);
            }
        }
        Ok(())
    }
}
