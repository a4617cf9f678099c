//! What tests share: code generation, the lab harness, the look for leftovers.

pub mod codegen;
pub mod lab;
pub mod leftovers;
pub mod processes;
pub mod pull_bench;
pub mod store_bench;
