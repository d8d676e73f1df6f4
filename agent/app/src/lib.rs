//! The sluice agent: assembles the crates, serves the operator's view.
