//! What can be done with a pair, one file for each: read rows, run the engine, write what comes out.

pub mod demo;
pub mod inspect;
pub mod score;
