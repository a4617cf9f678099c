//! What tests share: code generation, the lab harness, checks on the tree.

pub mod codegen;
