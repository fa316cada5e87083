//! Runs that are started by a container runtime, from our side.

use std::path::PathBuf;

use crate::rootfs::Plan;
use crate::wire::Writer;

/// What a spawner needs to start its runs by a container runtime.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    /// The root that the runtime itself sees: the host's programs and libraries.
    pub(crate) world: Plan,
    /// Its binary.
    pub(crate) path: PathBuf,
    /// Its command line, to which the container's name is added.
    pub(crate) arguments: Vec<String>,
    /// The bundle's configuration.
    pub(crate) config: String,
    /// The key by which the filter in it knows init.
    pub(crate) key: u64,
}

impl Runtime {
    /// How many processes of a run are there besides those of every run: the runtime.
    pub(super) const PROCESSES: u64 = 1;

    pub(super) fn write(&self, writer: &mut Writer) {
        self.world.write(writer);
        writer.string(&self.path.to_string_lossy());
        writer.count(self.arguments.len());
        self.arguments.iter().for_each(|word| writer.string(word));
        writer.string(&self.config);
        writer.long(self.key);
    }
}
