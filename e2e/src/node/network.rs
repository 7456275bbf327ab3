//! The network of real nodes: one bridge on the machine, one address on it for each node, and no way out.
//!
//! A node's namespace has no default route and the machine forwards nothing from or to the bridge, so no packet of a pod leaves the machine.
//! Of the machine's own ports, pods reach only those from which the lab takes its own.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};

use crate::command::{checked, with_input};
use crate::control_plane::{FREE_PORTS, SERVICE_CIDR};
use crate::lab::Lab;

/// The bridge.
pub(crate) const BRIDGE: &str = "spillway0";
/// The machine's own address on it, where the API server listens.
pub(crate) const MACHINE: Ipv4Addr = Ipv4Addr::new(10, 87, 0, 1);
/// All pods' addresses; each node has a /24 of it.
pub(crate) const POD_CIDR: &str = "10.88.0.0/16";
/// The bridge that a node's pods hang on, in its namespace.
pub(crate) const POD_BRIDGE: &str = "cni0";
/// nftables' family and name of the lab's table.
const TABLE: &str = "inet spillway-lab";
/// As many nodes as are ever useful on one machine; each costs 130 MB.
pub(crate) const MAX_NODES: u32 = 16;

pub(crate) fn node_address(index: u32) -> Ipv4Addr {
    let [a, b, c, _] = MACHINE.octets();
    Ipv4Addr::new(a, b, c, 10 + octet(index))
}

pub(crate) fn pod_cidr(index: u32) -> String {
    format!("10.88.{}.0/24", octet(index))
}

fn octet(index: u32) -> u8 {
    u8::try_from(index).unwrap_or(u8::MAX).min(200)
}

/// Makes the bridge and closes it off. What it makes is written down in the lab's state first.
pub(crate) fn create(lab: &Lab) -> Result<()> {
    let routes = checked("ip", &["-4", "route", "show"])?;
    for prefix in ["10.87.", "10.88.", "10.96."] {
        ensure!(
            !routes.lines().any(|route| route.starts_with(prefix)),
            "this machine already has a route for {prefix}*, which the lab uses; `lab down` removes what an older lab left. Routes:\n{routes}"
        );
    }
    lab.update_state(|state| {
        state.links.push(BRIDGE.to_owned());
        state.nft_tables.push(TABLE.to_owned());
    })?;
    checked("ip", &["link", "add", BRIDGE, "type", "bridge"])?;
    checked("ip", &["address", "add", &format!("{MACHINE}/24"), "dev", BRIDGE])?;
    checked("ip", &["link", "set", BRIDGE, "up"])?;
    let (lowest, highest) = (FREE_PORTS.start(), FREE_PORTS.end());
    // From the bridge to the bridge passes: where br_netfilter is on, packets between two nodes come by here as well.
    let rules = format!(
        r#"table {TABLE} {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{BRIDGE}" oifname != "{BRIDGE}" drop
    iifname != "{BRIDGE}" oifname "{BRIDGE}" drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{BRIDGE}" ct state established,related accept
    iifname "{BRIDGE}" meta l4proto icmp accept
    iifname "{BRIDGE}" tcp dport {lowest}-{highest} accept
    iifname "{BRIDGE}" drop
  }}
}}
"#
    );
    with_input("nft", &["-f", "-"], &rules).context("closing the lab's bridge off")?;
    Ok(())
}

/// Connects the namespace of the process `holder` to the bridge, as node `index` of `count`.
pub(crate) fn connect(lab: &Lab, holder: i32, index: u32, count: u32) -> Result<()> {
    let pid = holder.to_string();
    let outer = format!("spillway-n{index}");
    // It would go with the namespace by itself, but the kernel takes its time for that.
    lab.update_state(|state| state.links.push(outer.clone()))?;
    let address = node_address(index).to_string();
    checked("ip", &["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &pid])?;
    checked("ip", &["link", "set", &outer, "master", BRIDGE, "up"])?;

    let target = format!("--target={pid}");
    let inside = |args: &[&str]| checked("nsenter", &[&[&target, "--net"], args].concat());
    inside(&["ip", "link", "set", "lo", "up"])?;
    inside(&["ip", "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
    inside(&["ip", "link", "set", "eth0", "up"])?;
    inside(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
    // A packet to a Service needs a route before it is translated; a pod's has one by the pod's gateway, the node's own has not.
    inside(&["ip", "route", "add", SERVICE_CIDR, "dev", "eth0", "src", &address])?;
    for other in (0..count).filter(|other| *other != index) {
        inside(&["ip", "route", "add", &pod_cidr(other), "via", &node_address(other).to_string()])?;
    }

    // So that tests on the machine reach pods, and Services by way of the first node.
    checked("ip", &["route", "add", &pod_cidr(index), "via", &address])?;
    if index == 0 {
        checked("ip", &["route", "add", SERVICE_CIDR, "via", &address])?;
    }
    Ok(())
}
