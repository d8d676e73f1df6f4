//! `sluice flows`.

use super::{
    Shown, View,
    model::{Flow, Flows},
    shown,
    table::{Table, bytes},
};

impl View for Flows {
    const COMMAND: &'static str = "flows";
    const PATH: &'static str = "/flows";

    fn troubles(&self) -> Vec<String> {
        Vec::new()
    }

    fn text(all: &Shown<'_, Self>) -> String {
        let mut table = Table::of_nodes(
            all.is_merged,
            &[
                "DIRECTION",
                "TRANSPORT",
                "SOURCE",
                "SOURCE IDENTITY",
                "DESTINATION",
                "DESTINATION IDENTITY",
                "SENT",
                "RECEIVED",
                "AGE",
            ],
        );
        for (node, flows) in &all.answers {
            for flow in &flows.0 {
                table.row_of(node, cells(flow));
            }
        }
        table.render("no open connections")
    }
}

fn cells(flow: &Flow) -> Vec<String> {
    vec![
        flow.direction.clone(),
        flow.transport.clone(),
        flow.source.clone(),
        shown(flow.source_identity.as_ref()),
        flow.destination.clone(),
        shown(flow.destination_identity.as_ref()),
        bytes(flow.bytes_sent),
        bytes(flow.bytes_received),
        format!("{:.1} s", flow.age_seconds),
    ]
}
