//! `sluice certs`.

use super::{
    Shown, View,
    model::{Certificate, Certs},
    shown,
    table::Table,
};

impl View for Certs {
    const COMMAND: &'static str = "certs";
    const PATH: &'static str = "/certs";

    fn troubles(&self) -> Vec<String> {
        self.warnings.iter().chain(&self.faults).cloned().collect()
    }

    fn text(all: &Shown<'_, Self>) -> String {
        let leaves = all.answers.iter().map(|(node, certs)| (*node, certs.certificates.as_slice()));
        let leaves = table(all.is_merged, leaves, "no pod needs a certificate");
        let mut trust = Table::of_nodes(all.is_merged, &["KIND", "OF", "SERIAL", "EXPIRES"]);
        let mut denied = Vec::new();
        for (node, certs) in &all.answers {
            for entry in &certs.trust {
                let cells = vec![
                    entry.kind.clone(),
                    entry.of.clone(),
                    shown(entry.serial.as_ref()),
                    shown(entry.not_after.as_ref()),
                ];
                trust.row_of(node, cells);
            }
            if certs.denied > 0 {
                let place = if all.is_merged { format!("{node}: ") } else { String::new() };
                denied.push(format!(
                    "{place}{} entries in the list of denied identities\n",
                    certs.denied
                ));
            }
        }
        let trust = trust.render("no root is known, so nobody is believed");
        format!("{leaves}\nTRUST\n{trust}{}", denied.concat())
    }
}

/// Renders the certificates of pods as a table.
pub(super) fn table<'a>(
    is_merged: bool,
    nodes: impl Iterator<Item = (&'a str, &'a [Certificate])>,
    nothing: &str,
) -> String {
    let headings = ["IDENTITY", "SERIAL", "EXPIRES", "NEXT RENEWAL", "ISSUER", "LAST ERROR"];
    let mut table = Table::of_nodes(is_merged, &headings);
    for (node, certificates) in nodes {
        for certificate in certificates {
            let cells = vec![
                certificate.identity.clone(),
                shown(certificate.serial.as_ref()),
                shown(certificate.not_after.as_ref()),
                shown(certificate.next_renewal.as_ref()),
                shown(certificate.issuer.as_ref()),
                shown(certificate.last_error.as_ref()),
            ];
            table.row_of(node, cells);
        }
    }
    table.render(nothing)
}
