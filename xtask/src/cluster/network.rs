//! The links: a bridge in the control plane's namespace, to which both nodes and this machine are joined.
//!
//! ```text
//!  this machine --sluice-kN--+
//!                            br0 (control) --+-- eth0 (n1) -- pods
//!                                            +-- eth0 (n2) -- pods
//! ```

use std::{fmt::Write as _, io::Write as _, process::Stdio};

use anyhow::{Context as _, Result, bail};

use super::{
    instance::{Addresses, CONTROL, Instance, NODES},
    node,
    unit::Unit,
};
use crate::process;

/// Makes the links. The namespaces must exist already, each held by one process.
pub(crate) fn make(instance: &Instance, addresses: Addresses) -> Result<()> {
    let pid = |place: &str| -> Result<i32> {
        let holder = Unit::find(instance, &format!("{place}/{}", node::HOLDER))?;
        holder.pid().map(rustix::process::Pid::as_raw_pid).with_context(|| {
            format!("{} has ended; it said:\n{}", holder.shown(), holder.last_words())
        })
    };
    let mut batch = format!(
        "link set lo up\nlink add br0 type bridge\nlink set br0 up\naddress add {}/24 dev br0\n\
         address add {}/64 dev br0 nodad\n",
        addresses.control4(),
        addresses.control6()
    );
    for node in NODES {
        let (name, pid) = (node.name, pid(node.name)?);
        writeln!(batch, "link add {name} type veth peer name eth0 netns {pid}")?;
        writeln!(batch, "link set {name} master br0 up")?;
    }
    inside(instance, CONTROL, &batch)?;
    for node in NODES {
        let (own4, own6) = (addresses.node4(node), addresses.node6(node));
        let mut batch = format!(
            "link set lo up\nlink set eth0 up\naddress add {own4}/24 dev eth0\naddress add {own6}/64 dev eth0 nodad\n\
             route add default via {}\nroute add ::/0 via {}\n",
            addresses.control4(),
            addresses.control6()
        );
        for other in NODES.iter().filter(|other| other.name != node.name) {
            writeln!(batch, "route add {} via {}", other.pods4(), addresses.node4(*other))?;
            writeln!(batch, "route add {} via {}", other.pods6(), addresses.node6(*other))?;
        }
        inside(instance, node.name, &batch)?;
    }
    let mut batch = String::new();
    for node in NODES {
        writeln!(batch, "route add {} via {}", node.pods4(), addresses.node4(node))?;
        writeln!(batch, "route add {} via {}", node.pods6(), addresses.node6(node))?;
    }
    inside(instance, CONTROL, &batch)?;
    join_this_machine(instance, addresses, pid(CONTROL)?)
}

/// Joins this machine's own namespace to the bridge: from there, operators' tools reach the API server, and tests the
/// nodes' ports.
fn join_this_machine(instance: &Instance, addresses: Addresses, control: i32) -> Result<()> {
    let link = addresses.root_link();
    let batch = format!(
        "link add {link} type veth peer name root netns {control}\nlink set {link} up\n\
         address add {}/24 dev {link}\naddress add {}/64 dev {link} nodad\n",
        addresses.root4(),
        addresses.root6()
    );
    run(process::command("ip").args(["-batch", "-"]), &batch)?;
    inside(instance, CONTROL, "link set root master br0 up\n")
}

fn inside(instance: &Instance, place: &str, batch: &str) -> Result<()> {
    let mut command = process::command("nsenter");
    command.args(node::namespaces(instance, place)?).args(["--", "ip", "-batch", "-"]);
    run(&mut command, batch)
}

fn run(command: &mut std::process::Command, batch: &str) -> Result<()> {
    let shown = process::shown(command);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let mut input = child.stdin.take().context("no standard input")?;
    input.write_all(batch.as_bytes()).with_context(|| format!("`{shown}` does not read"))?;
    drop(input);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed: {complaint}in the batch:\n{batch}");
    }
    Ok(())
}

/// Removes this machine's end of its link; the other links go with their namespaces.
pub(crate) fn remove(addresses: Addresses) -> Result<()> {
    let link = addresses.root_link();
    if std::path::Path::new("/sys/class/net").join(&link).exists() {
        process::output(process::command("ip").args(["link", "delete", &link]))?;
    }
    Ok(())
}
