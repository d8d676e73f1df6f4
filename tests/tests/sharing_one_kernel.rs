//! Several agents on one kernel: each acts on its own pods only, also when addresses repeat.

use anyhow::Result;
use sluice_tests::{
    Canary, Capture, Family, Lab, NodeName, World, policies,
    traffic::{Probe, Server, Service},
};

const PORT: u16 = 7000;

fn lab(name: &str, policies: &[(&str, &str)]) -> Result<Lab> {
    let world = World::builder()
        .named(name)
        .pod("client", NodeName::A)
        .pod("server", NodeName::B)
        .build()?;
    let mut mesh = sluice_tests::MeshFile::of(&world);
    mesh.enrol("client", true)?;
    mesh.enrol("server", true)?;
    Lab::start_with(world, mesh, policies)
}

#[test]
fn two_meshes_with_the_same_addresses_do_not_mix() -> Result<()> {
    let open = lab("open", &[])?;
    let closed = lab("closed", &[("allow.yaml", &policies::allow("server", &["nobody"]))])?;
    let mut servers = Vec::new();
    for lab in [&open, &closed] {
        servers.push(Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?);
    }
    for family in Family::BOTH {
        let canary = Canary::new()?;
        let capture = Capture::between_nodes(&open.world, &canary)?;
        let target = open.pod("server")?.at(family, PORT);
        Probe::connect(&open.pod("client")?.netns, target)?.echo(canary.as_bytes())?;
        capture.seen()?.ensure_tls_only(PORT)?;
        Probe::ensure_refused(&closed.pod("client")?.netns, target)?;
    }
    Ok(())
}

#[test]
fn a_mesh_that_goes_away_leaves_the_other_one_working() -> Result<()> {
    let stays = lab("stays", &[])?;
    let mut goes = lab("goes", &[])?;
    let _server = Server::on_port(&stays.pod("server")?.netns, PORT, Service::Echo)?;
    goes.agent(NodeName::A)?.kill9()?;
    drop(goes);
    for family in Family::BOTH {
        let canary = Canary::new()?;
        let capture = Capture::between_nodes(&stays.world, &canary)?;
        let target = stays.pod("server")?.at(family, PORT);
        Probe::connect(&stays.pod("client")?.netns, target)?.echo(canary.as_bytes())?;
        capture.seen()?.ensure_tls_only(PORT)?;
    }
    Ok(())
}
