//! netd as it is used: real processes, real namespaces, real packets. Needs root; leaves nothing.

mod support;

mod names;

mod overlay;

mod lifecycle;

mod figures;
