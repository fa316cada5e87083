//! Numbers whose type is known at run time: the entries of a column that a user declared.

use bytemuck::Pod;

/// The type of a column's entries. The numbers are those of the store's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Dtype {
    /// 8 bits, 0 and above.
    Uint8 = 1,
    /// 8 bits.
    Int8 = 2,
    /// 16 bits, 0 and above.
    Uint16 = 3,
    /// 16 bits.
    Int16 = 4,
    /// 32 bits, 0 and above.
    Uint32 = 5,
    /// 32 bits.
    Int32 = 6,
    /// 64 bits.
    Int64 = 7,
    /// Single precision.
    Float32 = 8,
    /// Double precision.
    Float64 = 9,
}

impl Dtype {
    /// In the order of their codes.
    pub const ALL: [Self; 9] = [
        Self::Uint8,
        Self::Int8,
        Self::Uint16,
        Self::Int16,
        Self::Uint32,
        Self::Int32,
        Self::Int64,
        Self::Float32,
        Self::Float64,
    ];

    /// The name, as NumPy has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uint8 => "uint8",
            Self::Int8 => "int8",
            Self::Uint16 => "uint16",
            Self::Int16 => "int16",
            Self::Uint32 => "uint32",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Float32 => "float32",
            Self::Float64 => "float64",
        }
    }

    /// The type of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// The type of a code.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| *dtype as u8 == code)
    }

    /// Bytes of an entry.
    pub fn width(self) -> usize {
        match self {
            Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 => 2,
            Self::Uint32 | Self::Int32 | Self::Float32 => 4,
            Self::Int64 | Self::Float64 => 8,
        }
    }
}

/// Entries of one type, in memory that is aligned for each of them and kept when it shrinks.
///
/// ```
/// use k15_core::values::{Dtype, Values};
/// let mut values = Values::zeros(Dtype::Float32, 3);
/// values.bytes_mut()[4..8].copy_from_slice(&1.5f32.to_le_bytes());
/// assert_eq!(values.entries::<f32>(), [0.0, 1.5, 0.0]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    dtype: Dtype,
    length: usize,
    words: Vec<u64>,
}

impl Values {
    /// So many zeros.
    pub fn zeros(dtype: Dtype, length: usize) -> Self {
        let mut values = Self { dtype, length: 0, words: Vec::new() };
        values.resize(length);
        values
    }

    /// Room for so many entries; those that were there keep their values.
    pub fn resize(&mut self, length: usize) {
        let words = (length * self.dtype.width()).div_ceil(8);
        if self.words.len() < words {
            self.words.resize(words, 0);
        }
        self.length = length;
    }

    /// The type of the entries.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The entries' bytes, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.length * self.dtype.width()]
    }

    /// The same, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.length * self.dtype.width()]
    }

    /// The entries as numbers of `T`, which should be of the type's width; else the bytes' reading
    /// as `T`.
    pub fn entries<T: Pod>(&self) -> &[T] {
        let entries = bytemuck::cast_slice(&self.words);
        &entries[..(self.length * self.dtype.width()) / size_of::<T>()]
    }

    /// The same, to be written.
    pub fn entries_mut<T: Pod>(&mut self) -> &mut [T] {
        let length = (self.length * self.dtype.width()) / size_of::<T>();
        &mut bytemuck::cast_slice_mut(&mut self.words)[..length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_codes_and_widths_agree() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
            assert_eq!(Dtype::from_code(dtype as u8), Some(dtype));
            let bits = dtype.name().trim_start_matches(char::is_alphabetic);
            assert_eq!(bits.parse(), Ok(8 * dtype.width()));
        }
        assert_eq!((Dtype::from_name("float16"), Dtype::from_code(0)), (None, None));
    }

    #[test]
    fn entries_are_as_many_as_asked_for() {
        let mut values = Values::zeros(Dtype::Int16, 5);
        values.entries_mut::<i16>().copy_from_slice(&[1, -2, 3, -4, 5]);
        assert_eq!((values.bytes().len(), values.entries::<i16>()[1]), (10, -2));
        values.resize(2);
        assert_eq!(values.entries::<i16>(), [1, -2]);
    }
}
