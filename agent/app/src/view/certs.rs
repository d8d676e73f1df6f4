//! `sluice certs`.

use std::process::ExitCode;

use super::{client, model::Certs, table::Table};
use crate::{
    args::{Output, ViewOptions},
    logging::print,
};

/// What scripts see when something has expired, or will before it is likely to be replaced.
const WARNED: u8 = 2;

/// Prints the certificates of this node, the roots and revocation lists, and what is wrong with them.
pub(crate) fn run(options: &ViewOptions) -> anyhow::Result<ExitCode> {
    let body = client::ask(&options.socket, "/certs")?;
    let certs: Certs = serde_json::from_slice(&body)?;
    match options.output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&certs)?))?,
        Output::Table => print(&text(&certs))?,
    }
    let is_well = certs.warnings.is_empty() && certs.faults.is_empty();
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::from(WARNED) })
}

fn text(certs: &Certs) -> String {
    let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let mut leaves =
        Table::new(&["IDENTITY", "SERIAL", "EXPIRES", "NEXT RENEWAL", "ISSUER", "LAST ERROR"]);
    for certificate in &certs.certificates {
        leaves.row(vec![
            certificate.identity.clone(),
            shown(&certificate.serial),
            shown(&certificate.not_after),
            shown(&certificate.next_renewal),
            shown(&certificate.issuer),
            shown(&certificate.last_error),
        ]);
    }
    let mut trust = Table::new(&["KIND", "OF", "SERIAL", "EXPIRES"]);
    for entry in &certs.trust {
        let cells = [entry.kind.clone(), entry.of.clone(), shown(&entry.serial)];
        trust.row(cells.into_iter().chain([shown(&entry.not_after)]).collect());
    }
    let mut lines = vec![
        leaves.render("no pod of this node needs a certificate"),
        "TRUST".to_owned(),
        trust.render("no root is known, so nobody is believed").trim_end().to_owned(),
    ];
    if certs.denied > 0 {
        lines.push(format!("{} entries in the list of denied identities", certs.denied));
    }
    lines.extend(certs.warnings.iter().map(|warning| format!("WARNING: {warning}")));
    lines.extend(certs.faults.iter().map(|fault| format!("ERROR: {fault}")));
    lines.push(String::new());
    lines.join("\n")
}
