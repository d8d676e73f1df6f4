//! Where the program's words go: the log, and the last line of a command that failed.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

/// Starts logging to standard error, as JSON when `SLUICE_LOG_FORMAT=json`. `level` holds unless
/// `SLUICE_LOG` gives directives of its own, such as `info,access=off`.
pub(crate) fn start(level: &str) -> anyhow::Result<()> {
    let filter = match std::env::var("SLUICE_LOG") {
        Ok(directives) => EnvFilter::try_new(directives)?,
        Err(_) => EnvFilter::try_new(level)?,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if std::env::var("SLUICE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(false).init();
    }
    Ok(())
}

/// Tells the user why a command failed.
pub(crate) fn complain(text: &str) {
    // There is nowhere left to say that standard error is closed.
    drop(writeln!(io::stderr(), "{text}"));
}

/// Prints a command's result.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    Ok(output.flush()?)
}
