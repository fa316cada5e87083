//! How a store is opened, from Python's keywords.

use std::path::PathBuf;

use k15_core::store::{Column, Options, Sync, WhenFull};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::argument::{self, natural, text};

/// How a store is to be opened, as its constructor was told.
pub struct Settings<'a, 'py> {
    /// Where; in memory if it is None.
    pub directory: Option<PathBuf>,
    /// The bound on the log's files.
    pub capacity_bytes: Option<&'a Bound<'py, PyAny>>,
    /// What happens then.
    pub when_full: &'a str,
    /// When calls reach the disk.
    pub sync: &'a str,
    /// How often a group is sampled.
    pub max_uses: Option<&'a Bound<'py, PyAny>>,
    /// The size of a file.
    pub file_bytes: Option<&'a Bound<'py, PyAny>>,
    /// Dtypes of per-token columns by name.
    pub columns: Option<&'a Bound<'py, PyDict>>,
}

impl Settings<'_, '_> {
    /// The options that they are, the defaults for what was not given.
    pub fn read(self) -> PyResult<Options> {
        let mut options = Options {
            directory: self.directory,
            when_full: text(self.when_full, WhenFull::from_name)?,
            sync: text(self.sync, Sync::from_name)?,
            ..Options::default()
        };
        if let Some(bytes) = self.capacity_bytes {
            options.capacity_bytes = natural("capacity_bytes", bytes)?;
        }
        if let Some(bytes) = self.file_bytes {
            options.file_bytes = Some(natural("file_bytes", bytes)?);
        }
        if let Some(uses) = self.max_uses {
            options.max_uses = natural("max_uses", uses)?;
        }
        for (name, dtype) in self.columns.into_iter().flatten() {
            let (name, dtype): (String, String) = (name.extract()?, dtype.extract()?);
            options.columns.push(Column { name, dtype: argument::dtype(&dtype)? });
        }
        Ok(options)
    }
}
