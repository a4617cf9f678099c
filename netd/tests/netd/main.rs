//! netd as it is used: real processes, real namespaces, real packets. Needs root; leaves nothing.

mod support;

mod names;

mod leave;

mod egress;

mod egress6;

mod ingress;

mod ingress6;

mod forward;

mod malformed;

mod overlay;

mod balance;

mod encrypted;

mod policy;

mod six;

mod lifecycle;

mod converge;

mod properties;

mod damage;

mod killed;

mod matrix;

mod rules;

mod audit;

mod figures;
