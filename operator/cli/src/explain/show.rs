//! The answer for people.

use std::io::{self, Write};

use super::Explanation;
use crate::{
    capacity::pool_table,
    output::{Report, Table},
};

impl Report for Explanation {
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}: {}", self.reservation, self.phase)?;
        writeln!(out, "  Asked:    {}", self.asked)?;
        if let Some(reason) = &self.reason {
            writeln!(out, "  Reason:   {reason}")?;
        }
        if let Some(message) = &self.message {
            writeln!(out, "  Message:  {message}")?;
        }
        if let Some(quota) = &self.quota {
            let held = quota.held.map_or_else(|| "?".to_owned(), |held| held.to_string());
            let limit = quota.limit.map_or_else(|| "no limit".to_owned(), |limit| format!("a quota of {limit}"));
            writeln!(
                out,
                "  Tenant:   {} holds {held} {} devices of {}, with {limit}",
                quota.tenant, quota.tier, quota.sku
            )?;
        }
        if let Some(booking) = &self.booking {
            writeln!(out, "  Booking:  {} in pool {}, booked {}", booking.id, booking.pool, booking.booked_at)?;
            if let Some(active) = &booking.active_at {
                let ends =
                    booking.ends_at.as_ref().map_or_else(|| "open-ended".to_owned(), |ends| format!("ends {ends}"));
                writeln!(out, "            active {active}, {ends}")?;
            }
            if let Some(hours) = &booking.gpu_hours {
                writeln!(out, "            {hours} GPU-hours{}", if self.is_over() { "" } else { " so far" })?;
            }
        }
        self.write_tables(out)?;
        if !self.help.is_empty() {
            writeln!(out, "\nWhat to know, and what would help:")?;
            for sentence in &self.help {
                writeln!(out, "  - {sentence}")?;
            }
        }
        if !self.not_shown.is_empty() {
            writeln!(out, "\nNot shown, because you may not list it: {}.", self.not_shown.join("; "))?;
        }
        Ok(())
    }
}

impl Explanation {
    fn is_over(&self) -> bool {
        matches!(self.phase.as_str(), "Ending" | "Ended")
    }

    fn write_tables(&self, out: &mut dyn Write) -> io::Result<()> {
        if !self.conditions.is_empty() {
            let mut table = Table::new(&["CONDITION", "STATUS", "REASON", "SINCE"]);
            for row in &self.conditions {
                table.push(vec![row.type_.clone(), row.status.clone(), row.reason.clone(), row.since.clone()]);
            }
            section(out, &table)?;
        }
        if !self.nodes.is_empty() {
            let mut table = Table::new(&["NODE", "DEVICES", "HANDED-OVER", "LOST", "STATE", "PODS"]);
            for row in &self.nodes {
                let dash = || "-".to_owned();
                let pods = if row.pods.is_empty() { dash() } else { row.pods.join(", ") };
                table.push(vec![
                    row.node.clone(),
                    row.devices.to_string(),
                    row.handed_over.clone().unwrap_or_else(dash),
                    row.lost.clone().unwrap_or_else(dash),
                    row.state.clone(),
                    pods,
                ]);
            }
            section(out, &table)?;
        }
        if let Some(queue) = &self.queue {
            writeln!(out, "\n  It is number {} in line.", queue.position)?;
            if !queue.ahead.is_empty() {
                let mut table = Table::new(&["BEFORE IT", "DEVICES", "CREATED", "REASON"]);
                for row in &queue.ahead {
                    table.push(vec![
                        row.reservation.clone(),
                        row.devices.to_string(),
                        row.created.clone(),
                        row.reason.clone(),
                    ]);
                }
                table.write(out, 2)?;
            }
        }
        if !self.pools.is_empty() {
            section(out, &pool_table(&self.pools))?;
        }
        if !self.waiting_pods.is_empty() {
            let mut table = Table::new(&["WAITING POD", "WHY"]);
            for row in &self.waiting_pods {
                table.push(vec![row.pod.clone(), row.why.clone()]);
            }
            section(out, &table)?;
        }
        Ok(())
    }
}

fn section(out: &mut dyn Write, table: &Table) -> io::Result<()> {
    writeln!(out)?;
    table.write(out, 2)
}
