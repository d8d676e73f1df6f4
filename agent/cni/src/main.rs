//! The `sluice-cni` program: the plugin when a container runtime calls it, the installer otherwise.
#![forbid(unsafe_code)]

use std::{
    ffi::OsString,
    io::{self, Write},
    panic,
    process::ExitCode,
};

use sluice_cni::{
    install::{self, InstallError, Installed, Level, USAGE},
    plugin::{self, Code, Failure, Outcome},
};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let command = arguments.next();
    match command.as_ref().and_then(|command| command.to_str()) {
        None if std::env::var_os("CNI_COMMAND").is_some() => be_the_plugin(),
        None => {
            say(USAGE);
            ExitCode::FAILURE
        }
        Some("--version" | "version") => {
            say(concat!("sluice-cni ", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        Some(command) => match maintain(command, arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(&format!("sluice-cni: {error}"));
                ExitCode::FAILURE
            }
        },
    }
}

/// Runs the plugin. If it panics, the runtime still reads an object that says so.
fn be_the_plugin() -> ExitCode {
    let outcome = panic::catch_unwind(|| {
        plugin::run(&|name| std::env::var_os(name), &mut io::stdin().lock(), install::is_retired())
    });
    let Outcome { output, success } = outcome.unwrap_or_else(|_| {
        let details = "its message is on standard error; the runtime may try again";
        let failure = Failure {
            code: Code::Internal,
            message: "BUG: the plugin panicked".to_owned(),
            details: details.to_owned(),
        };
        Outcome { output: Some(failure.to_json(None)), success: false }
    });
    let written = output.map_or(Ok(()), |output| writeln!(io::stdout(), "{output}"));
    if success && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn maintain(command: &str, arguments: impl Iterator<Item = OsString>) -> Result<(), InstallError> {
    match command {
        "install" => {
            match install::install(&install::parse(arguments)?)? {
                Installed::InPlace { file, main, .. } => {
                    say(&format!("sluice-cni: entered in {} after {main}", file.display()));
                }
                Installed::Waiting => {
                    say(
                        "sluice-cni: no network list yet; `sluice-cni watch` enters it when there is",
                    );
                }
            }
            Ok(())
        }
        "watch" => match install::watch(&install::parse(arguments)?, &mut report)? {},
        "keep-out" => install::keep_out(&install::parse(arguments)?, &mut report),
        "look" => {
            let found = install::look(&install::parse(arguments)?)?;
            // Nobody is left to be told when standard output is closed.
            drop(writeln!(io::stdout(), "{found}"));
            Ok(())
        }
        "uninstall" => install::uninstall(&install::parse(arguments)?),
        "--help" | "help" => {
            say(USAGE);
            Ok(())
        }
        other => Err(InstallError::Usage(format!("{other:?} is not a command"))),
    }
}

fn report(level: Level, text: &str) {
    let level = if level == Level::Warning { "warning: " } else { "" };
    say(&format!("sluice-cni: {level}{text}"));
}

/// To standard error: standard output is the runtime's.
fn say(text: &str) {
    // Nobody is left to be told when standard error is closed.
    drop(writeln!(io::stderr(), "{text}"));
}
