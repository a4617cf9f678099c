//! netd as it is used: real processes, real namespaces, real packets. Needs root; leaves nothing.

mod support;

mod names;

mod leave;

mod egress;

mod ingress;

mod forward;

mod overlay;

mod balance;

mod lifecycle;

mod properties;

mod rules;

mod figures;
