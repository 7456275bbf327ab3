//! Tables for people, JSON and YAML for programs.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::error::Error;

/// How an answer is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
    /// Comma-separated values with a line of names: `usage` only.
    Csv,
}

/// An answer that can be printed.
pub(crate) trait Report: Serialize {
    /// Writes it for people.
    fn write_table(&self, out: &mut dyn Write) -> io::Result<()>;

    /// Writes it for spreadsheets, where it is rows.
    fn write_csv(&self, _out: &mut dyn Write) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "-o csv is for `usage` only: take table, json or yaml"))
    }
}

/// Prints an answer.
pub(crate) fn write(format: Format, report: &impl Report, out: &mut dyn Write) -> Result<(), Error> {
    match format {
        Format::Table => report.write_table(out),
        Format::Csv => report.write_csv(out),
        Format::Json => {
            serde_json::to_string_pretty(report).map_err(io::Error::other).and_then(|text| writeln!(out, "{text}"))
        }
        Format::Yaml => serde_yaml::to_string(report).map_err(io::Error::other).and_then(|text| write!(out, "{text}")),
    }
    .and_then(|()| out.flush())
    .map_err(|source| Error::Write { source })
}

/// Columns of text, as kubectl prints them; numbers are aligned to the right.
#[derive(Debug)]
pub(crate) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(heads: &[&'static str]) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, one cell a column.
    pub(crate) fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    /// Writes it, each line behind so many spaces.
    pub(crate) fn write(&self, out: &mut dyn Write, indent: usize) -> io::Result<()> {
        let columns: Vec<Column> = self
            .heads
            .iter()
            .enumerate()
            .map(|(at, head)| {
                let cells = || self.rows.iter().filter_map(|row| row.get(at));
                let width = cells().map(|cell| cell.chars().count()).max().unwrap_or(0).max(head.chars().count());
                let right = !self.rows.is_empty() && cells().all(|cell| is_number(cell));
                Column { width, right }
            })
            .collect();
        let heads: Vec<String> = self.heads.iter().map(|head| (*head).to_owned()).collect();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = " ".repeat(indent);
            for (at, (cell, column)) in row.iter().zip(&columns).enumerate() {
                if at > 0 {
                    line.push_str("  ");
                }
                let padding = " ".repeat(column.width.saturating_sub(cell.chars().count()));
                if column.right {
                    line.push_str(&padding);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&padding);
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

struct Column {
    width: usize,
    right: bool,
}

fn is_number(cell: &str) -> bool {
    cell.contains(|c: char| c.is_ascii_digit()) && cell.chars().all(|c| c.is_ascii_digit() || "-.".contains(c))
}

/// `1 pod`, `2 pods`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
pub(crate) fn shown(report: &impl Report) -> String {
    let mut text = Vec::new();
    write(Format::Table, report, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}
