//! The developer's door: build, load, demo, test, bench.
fn main() {}
