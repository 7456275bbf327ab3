//! Lists of nodes and of tasks: CSV, columns by name.

use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
};

use csv::StringRecord;
use spillway_planner::packing::{Bin, CLASSES_MAX, Class, ClassSet, DEVICES_MAX, Item, ItemError};

/// What an experiment is about.
#[derive(Debug)]
pub(crate) struct Trace {
    /// Nodes with devices, in the order of the list.
    pub(crate) nodes: Vec<Bin>,
    /// Tasks, in the order of the list.
    pub(crate) tasks: Vec<Item>,
    /// Thousandths of devices of all nodes.
    pub(crate) capacity_milli: i64,
}

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// The file cannot be read at all.
    #[error("{}: cannot be read: is the path right?", file.display())]
    Open {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: csv::Error,
    },
    /// A line is no CSV, or has not as many fields as the header.
    #[error("{}: this is not CSV with as many fields in each line as in the first", file.display())]
    Csv {
        /// Which.
        file: PathBuf,
        /// Why, with the line.
        #[source]
        source: csv::Error,
    },
    /// The header lacks a column.
    #[error("{}, line 1: there is no column {column}: the first line must name the columns {needed}", file.display())]
    NoColumn {
        /// Which file.
        file: PathBuf,
        /// Which column.
        column: &'static str,
        /// Those that are needed.
        needed: String,
    },
    /// A field cannot be used.
    #[error("{}, line {line}, column {column}: {value:?} {wrong}", file.display())]
    Field {
        /// Which file.
        file: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// Which column.
        column: &'static str,
        /// What is there.
        value: String,
        /// What is wrong with it.
        wrong: String,
    },
    /// A list without what an experiment needs.
    #[error("{}: {wrong}", file.display())]
    Useless {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        wrong: String,
    },
}

const NODE_COLUMNS: [&str; 4] = ["cpu_milli", "memory_mib", "gpu", "model"];
const TASK_COLUMNS: [&str; 4] = ["cpu_milli", "memory_mib", "num_gpu", "gpu_milli"];
/// A list may do without it: then every task may go anywhere.
const MODELS_COLUMN: &str = "gpu_spec";

/// One line.
struct Row<'a> {
    file: &'a Path,
    line: u64,
    header: &'a StringRecord,
    record: StringRecord,
}

impl Row<'_> {
    /// The text of a column; a column that the header lacks is empty.
    fn text(&self, column: &str) -> &str {
        let at = self.header.iter().position(|name| name == column);
        at.and_then(|at| self.record.get(at)).unwrap_or_default()
    }

    fn number(&self, column: &'static str) -> Result<u32, InputError> {
        let wrong = || format!("is not a whole number from 0 to {}", u32::MAX);
        self.text(column).parse().map_err(|_| self.refuse(column, wrong()))
    }

    fn refuse(&self, column: &'static str, wrong: String) -> InputError {
        let value = self.text(column).to_owned();
        InputError::Field { file: self.file.to_owned(), line: self.line, column, value, wrong }
    }
}

/// Reads both lists.
pub(crate) fn read(nodes: &Path, tasks: &Path) -> Result<Trace, InputError> {
    let mut listed = Vec::new();
    each_row(nodes, &NODE_COLUMNS, |row| {
        let devices = row.number("gpu")?;
        if devices > u32::from(DEVICES_MAX) {
            return Err(row.refuse("gpu", format!("is more than the {DEVICES_MAX} devices that a node can have")));
        }
        let model = row.text("model").trim().to_owned();
        listed.push((model, row.number("cpu_milli")?, row.number("memory_mib")?, u16::try_from(devices).unwrap_or(0)));
        Ok(())
    })?;
    listed.retain(|&(.., devices)| devices > 0);
    let useless = |file: &Path, wrong: String| InputError::Useless { file: file.to_owned(), wrong };
    if listed.is_empty() {
        return Err(useless(nodes, "no node has a device (column gpu)".to_owned()));
    }
    // Classes are numbered by name, so that they do not depend on the order of the list.
    let models: BTreeSet<String> = listed.iter().map(|(model, ..)| model.clone()).collect();
    if models.len() > usize::from(CLASSES_MAX) {
        return Err(useless(nodes, format!("{} models, but at most {CLASSES_MAX} can be told apart", models.len())));
    }
    let models: Vec<(String, Class)> = models.into_iter().zip((0..).map_while(Class::new)).collect();
    let class_of = |model: &str| models.iter().find(|(name, _)| name == model).map(|&(_, class)| class);
    let bins = listed.iter().filter_map(|(model, cpu_milli, memory_mib, devices)| {
        Some(Bin::empty(class_of(model)?, *cpu_milli, *memory_mib, *devices))
    });
    let bins: Vec<Bin> = bins.collect();

    let mut items = Vec::new();
    each_row(tasks, &TASK_COLUMNS, |row| {
        let (cpu_milli, memory_mib) = (row.number("cpu_milli")?, row.number("memory_mib")?);
        let devices = row.number("num_gpu")?;
        let milli = if devices > 0 { row.number("gpu_milli")? } else { 0 };
        let item = Item::new(cpu_milli, memory_mib, devices, milli).map_err(|error| {
            let column = if matches!(error, ItemError::Devices { .. }) { "num_gpu" } else { "gpu_milli" };
            row.refuse(column, format!("cannot be: {error}"))
        })?;
        let allowed = row.text(MODELS_COLUMN).trim();
        // Models bind tasks with devices only. One that no node has is no place to go to, not any place.
        items.push(match allowed {
            "" => item,
            _ if devices == 0 => item,
            allowed => item.only(allowed.split('|').filter_map(|model| class_of(model.trim())).collect::<ClassSet>()),
        });
        Ok(())
    })?;
    if items.iter().all(|item| item.gpu_milli() == 0) {
        return Err(useless(tasks, "no task wants a device (columns num_gpu and gpu_milli)".to_owned()));
    }
    let capacity_milli = bins.iter().flat_map(|bin| &bin.capacity.devices).map(|&milli| i64::from(milli)).sum();
    Ok(Trace { nodes: bins, tasks: items, capacity_milli })
}

fn each_row(
    file: &Path,
    needed: &[&'static str],
    mut take: impl FnMut(&Row<'_>) -> Result<(), InputError>,
) -> Result<(), InputError> {
    // A folder opens, and fails when it is read.
    let opened = File::open(file).map_err(csv::Error::from);
    let opened = opened.map_err(|source| InputError::Open { file: file.to_owned(), source })?;
    let mut reader = csv::Reader::from_reader(opened);
    let broken = |source: csv::Error| {
        let file = file.to_owned();
        if source.is_io_error() { InputError::Open { file, source } } else { InputError::Csv { file, source } }
    };
    let header = reader.headers().map_err(broken)?.clone();
    for &column in needed {
        if !header.iter().any(|name| name == column) {
            return Err(InputError::NoColumn { file: file.to_owned(), column, needed: needed.join(",") });
        }
    }
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let line = record.position().map_or(0, csv::Position::line);
        take(&Row { file, line, header: &header, record })?;
    }
    Ok(())
}
