//! What the headers of an executable say.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::process;

/// Returns whether the program is static: it names no dynamic loader (ELF's `PT_INTERP`) for the kernel to start.
pub(crate) fn is_static(program: &Path) -> bool {
    interpreter(program).is_ok_and(|found| !found)
}

fn interpreter(program: &Path) -> Result<bool> {
    let headers = process::output(
        process::command("readelf").args(["--program-headers", "--wide"]).arg(program),
    )
    .context("reading a program's headers")?;
    Ok(headers.contains(" INTERP "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        assert!(!is_static(&process::find("sh").unwrap()));
        assert!(!is_static(Path::new("/no/such/program")));
    }
}
