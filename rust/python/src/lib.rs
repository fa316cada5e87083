//! The module `k15core._core`: thin bindings, one file a class.

use pyo3::prelude::*;

mod argument;
mod attention;
mod error;
mod handover;
mod micro_batch;
mod noise;
mod priority_index;
mod prompt_sampler;
mod repetition;
mod sandbox;
mod store;
mod store_answers;
mod store_arguments;
mod store_choice;
mod store_place;
mod store_sampling;
mod store_server;
mod store_settings;
mod store_tools;
mod store_watcher;
mod views;

/// Registers every class and function of the module.
#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(attention::attend_cached, module)?)?;
    module.add_function(wrap_pyfunction!(handover::checksum, module)?)?;
    module.add_function(wrap_pyfunction!(handover::copy_with_checksum, module)?)?;
    module.add_function(wrap_pyfunction!(micro_batch::copy_runs, module)?)?;
    module.add_function(wrap_pyfunction!(micro_batch::plan_micro_batches, module)?)?;
    module.add_function(wrap_pyfunction!(noise::uniforms, module)?)?;
    module.add_function(wrap_pyfunction!(store_choice::priorities, module)?)?;
    module.add_class::<repetition::RepetitionDetector>()?;
    module.add_class::<priority_index::PriorityIndex>()?;
    module.add_class::<prompt_sampler::PromptSampler>()?;
    module.add_class::<store::Store>()?;
    module.add_class::<store_server::SharedStore>()?;
    module.add_class::<store_server::StoreServer>()?;
    module.add_class::<store_tools::StoreReader>()?;
    module.add_class::<store_watcher::StoreWatcher>()?;
    module.add_function(wrap_pyfunction!(store_tools::verify_store, module)?)?;
    module.add_function(wrap_pyfunction!(store_tools::repair_store, module)?)?;
    module.add_class::<sandbox::SandboxPool>()?;
    Ok(())
}
