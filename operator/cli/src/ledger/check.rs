//! `spillway ledger verify`: whether a copy, or the ledger of the cluster, can be relied on.

use std::io::{self, Write};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, api::ListParams};
use serde::Serialize;
use spillway_verify::Violation;

use super::{
    copy::Copy,
    export::{self, highest_stamp},
};
use crate::{
    cluster::list,
    error::Error,
    output::{Report, Table, counted},
};

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Checked {
    /// What was checked: a file, or the cluster.
    pub(crate) what: String,
    /// True when it can be restored as it is.
    pub(crate) sound: bool,
    /// Generation of the root.
    pub(crate) generation: i64,
    /// When the copy was made.
    pub(crate) exported_at: String,
    /// Pages.
    pub(crate) pages: usize,
    /// Bookings that stand.
    pub(crate) live: usize,
    /// Bookings that ended.
    pub(crate) ended: usize,
    /// The highest generation stamped on a node, when the copy was made or, of the cluster, now.
    pub(crate) highest_stamp: i64,
    /// Why the operator would not take it, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unreadable: Option<String>,
    /// What else is wrong.
    pub(crate) findings: Vec<Violation>,
}

/// Checks a file, without any cluster.
pub(crate) fn check_file(name: &str, copy: &Copy) -> Checked {
    let mut checked = check(copy);
    checked.what = name.to_owned();
    checked
}

/// Checks the ledger of the cluster.
pub(crate) async fn check_cluster(client: &Client) -> Result<Checked, Error> {
    let (copy, _) = export::read(client).await?;
    let mut checked = check(&copy);
    let nodes: Vec<Node> = list(Api::all(client.clone()), &ListParams::default(), "nodes").await?;
    checked.highest_stamp = highest_stamp(&nodes);
    checked.what = "the cluster's ledger".to_owned();
    checked.sound &= checked.highest_stamp <= checked.generation;
    Ok(checked)
}

fn check(copy: &Copy) -> Checked {
    let (live, ended, unreadable) = match copy.decode() {
        Ok(whole) => (whole.live.len(), whole.ended.len(), None),
        Err(error) => (0, 0, Some(error.to_string())),
    };
    let findings = copy.faults();
    Checked {
        what: String::new(),
        sound: unreadable.is_none() && findings.is_empty() && copy.highest_stamp <= copy.root.generation,
        generation: copy.root.generation,
        exported_at: copy.exported_at.clone(),
        pages: copy.pages.len(),
        live,
        ended,
        highest_stamp: copy.highest_stamp,
        unreadable,
        findings,
    }
}

impl Report for Checked {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        if let Some(why) = &self.unreadable {
            writeln!(out, "The operator would not take it: {why}\n")?;
        }
        if self.highest_stamp > self.generation {
            writeln!(
                out,
                "It is behind the cluster: generation {}, and a node was written under {}\n",
                self.generation, self.highest_stamp
            )?;
        }
        if !self.findings.is_empty() {
            let mut table = Table::new(&["INVARIANT", "CODE", "OBJECT", "MESSAGE"]);
            for finding in &self.findings {
                table.push(vec![
                    finding.invariant.to_string(),
                    finding.code.to_owned(),
                    finding.object.clone(),
                    finding.message.clone(),
                ]);
            }
            table.write(out, 0)?;
            writeln!(out)?;
        }
        writeln!(
            out,
            "{} is {}: generation {} of {}, {}, {} live and {} that ended.",
            self.what,
            if self.sound { "sound" } else { "NOT sound" },
            self.generation,
            self.exported_at,
            counted(self.pages, "page"),
            counted(self.live, "booking"),
            self.ended
        )
    }
}
