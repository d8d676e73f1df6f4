//! curl, as a customer would use it.

use std::{net::SocketAddr, path::Path, process::Command};

use anyhow::{Result, ensure};

use crate::{Pod, Process};

/// Fetches the page with the secret. The error is curl's own message.
pub(super) fn fetch(pod: &Pod, server: SocketAddr) -> Result<String> {
    run(pod, &["-g", &format!("http://{server}/secret")])
}

/// Sends a letter by SMTP.
pub(super) fn send_mail(pod: &Pod, server: SocketAddr, letter: &Path) -> Result<()> {
    let url = format!("smtp://{server}/customer");
    let letter = letter.to_string_lossy();
    let addresses = ["--mail-from", "me@example.org", "--mail-rcpt", "shop@example.org"];
    let rest = ["-g", &url, "-T", &letter];
    run(pod, &[&addresses[..], &rest].concat()).map(|_| ())
}

fn run(pod: &Pod, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "5"]).args(arguments);
    let output = Process::output(&pod.netns, &mut command)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", error.trim_end());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
