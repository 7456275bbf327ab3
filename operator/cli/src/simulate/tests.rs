use std::{fs, path::Path};

use clap::Parser;
use rstest::rstest;

use super::*;
use crate::{
    args::{Cli, Command},
    error,
    output::{self, Format},
};

const NODES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/simulate/testdata/nodes.csv");
const TASKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/simulate/testdata/tasks.csv");

fn parse(arguments: &[&str]) -> Result<SimulateArgs, clap::Error> {
    let base = ["spillway", "simulate", "openb", "--nodes", NODES, "--tasks", TASKS];
    match Cli::try_parse_from(base.iter().chain(arguments))?.command {
        Command::Simulate(args) => Ok(args),
        other => panic!("not simulate: {other:?}"),
    }
}

/// What is printed, the time left out.
fn printed(format: Format, arguments: &[&str]) -> String {
    let Simulation::Openb(args) = parse(arguments).unwrap().experiment else { panic!("not openb") };
    let mut report = run_openb(&args).unwrap();
    report.seconds_per_experiment = report::Decimal { units: 1, places: 3 };
    let mut text = Vec::new();
    output::write(format, &report, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn a_tiny_list_as_json() {
    insta::assert_snapshot!(printed(Format::Json, &["--seeds", "1-2"]), @r#"
    {
      "policy": "dual",
      "seeds": [
        1,
        2
      ],
      "nodes": 7,
      "devices": 31,
      "tasks": 14,
      "allocated_percent": {
        "100": {
          "mean": 89.0161,
          "per_seed": [
            79.9677,
            98.0645
          ]
        },
        "110": {
          "mean": 90.629,
          "per_seed": [
            83.1935,
            98.0645
          ]
        },
        "130": {
          "mean": 91.9355,
          "per_seed": [
            85.8065,
            98.0645
          ]
        }
      },
      "dropped": [
        5,
        12
      ],
      "seconds_per_experiment": 0.001
    }
    "#);
}

#[test]
fn a_tiny_list_as_a_table() {
    insta::assert_snapshot!(printed(Format::Table, &["--seeds", "1-3", "--policy", "fgd"]), @r#"
    Policy fgd, 7 nodes with 31 devices, 14 tasks: percent of the devices that are allocated when 100, 110 and 130 percent have arrived

    SEED   AT-100   AT-110   AT-130  DROPPED
    1     78.3548  81.5806  97.0968  5
    2     98.0645  98.0645  98.0645  12
    3     72.9355  83.5806  90.6452  2
    mean  83.1183  87.7419  95.2688

    0.001 seconds an experiment on one thread
    "#);
}

/// A seed gives the same bytes at any time, with any number of threads, alone and among others.
#[rstest]
fn the_same_seed_gives_the_same_bytes(#[values("dual", "fgd", "bestfit", "random")] policy: &str) {
    let with = |seeds, threads| printed(Format::Json, &["--policy", policy, "--seeds", seeds, "--threads", threads]);
    let first = with("1-6", "1");
    assert_eq!(first, with("1-6", "1"));
    assert_eq!(first, with("1-6", "2"));
    assert_eq!(first, with("1,2,3-6", "64"));
    assert_ne!(first, with("2-7", "1"));
}

#[test]
fn what_does_not_fit_anywhere_is_dropped_and_the_rest_is_placed() {
    let trace = input::read(Path::new(NODES), Path::new(TASKS)).unwrap();
    // Nodes without devices are left out.
    assert_eq!((trace.nodes.len(), trace.tasks.len(), trace.capacity_milli), (7, 14, 31_000));
    for policy in [PolicyName::Dual, PolicyName::Fgd, PolicyName::Bestfit, PolicyName::Random] {
        let outcome = Experiment::new(&trace, policy).run(5).unwrap();
        let [at_100, at_110, at_130] = outcome.allocated;
        assert!(at_100 <= at_110 && at_110 <= at_130 && at_130 <= 100_000_000, "{outcome:?}");
        assert!(at_100 > 50_000_000 && outcome.dropped > 0 && outcome.dropped < outcome.arrived, "{outcome:?}");
    }
}

const HEAD: &str = "cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n";
const NODE_HEAD: &str = "sn,cpu_milli,memory_mib,gpu,model\n";

#[rstest]
#[case::word("1000,1024,1,half,\n", "line 2, column gpu_milli: \"half\" is not a whole number")]
#[case::negative("1000,1024,1,500,\n-1,1024,1,500,\n", "line 3, column cpu_milli: \"-1\" is not a whole number")]
#[case::empty("1000,,1,500,\n", "line 2, column memory_mib: \"\" is not a whole number")]
#[case::too_much("1000,1024,1,1001,\n", "line 2, column gpu_milli: \"1001\" cannot be: 1001 thousandths")]
#[case::shares("1000,1024,2,500,\n", "line 2, column gpu_milli: \"500\" cannot be: 500 thousandths of each of 2")]
#[case::many("1000,1024,1300,1000,\n", "line 2, column num_gpu: \"1300\" cannot be: 1300 devices")]
#[case::short("1000,1024\n", "as many fields")]
#[case::none("", "no task wants a device")]
#[case::cpu_only("1000,1024,0,0,\n", "no task wants a device")]
fn bad_tasks_are_refused(#[case] rows: &str, #[case] expected: &str) {
    let file = write(&format!("{HEAD}{rows}"));
    let text = refused(Path::new(NODES), &file.0);
    assert!(text.contains(expected) && text.contains(&file.0.display().to_string()), "{text}");
}

#[rstest]
#[case::word("a,1000,1024,two,x\n", "line 2, column gpu: \"two\" is not a whole number")]
#[case::many("a,1000,1024,1300,x\n", "line 2, column gpu: \"1300\" is more than the 1024 devices")]
#[case::none("a,1000,1024,0,x\n", "no node has a device (column gpu)")]
fn bad_nodes_are_refused(#[case] rows: &str, #[case] expected: &str) {
    let file = write(&format!("{NODE_HEAD}{rows}"));
    let text = refused(&file.0, Path::new(TASKS));
    assert!(text.contains(expected) && text.contains(&file.0.display().to_string()), "{text}");
}

#[test]
fn a_missing_column_is_named() {
    let file = write("sn,cpu_milli,gpu,model\n");
    let text = refused(&file.0, Path::new(TASKS));
    assert!(
        text.contains("line 1: there is no column memory_mib") && text.contains("cpu_milli,memory_mib,gpu,model"),
        "{text}"
    );
}

#[test]
fn a_missing_file_is_named() {
    let text = refused(Path::new("no/such.csv"), Path::new(TASKS));
    assert!(text.contains("no/such.csv: cannot be read: is the path right?"), "{text}");
    assert!(text.contains("No such file"), "{text}");
}

#[test]
fn more_models_than_can_be_told_apart_are_refused() {
    let rows: String = (0..65).map(|n| format!("n-{n},1000,1024,1,model-{n}\n")).collect();
    let file = write(&format!("{NODE_HEAD}{rows}"));
    assert!(refused(&file.0, Path::new(TASKS)).contains("65 models, but at most 64"));
}

/// A list without the column of models is one of tasks that may go anywhere. A model that no node has is no place to go to.
#[test]
fn models_are_optional_and_unknown_ones_fit_nowhere() {
    let all_placed = |text: &str| {
        let file = write(text);
        let trace = input::read(Path::new(NODES), &file.0).unwrap();
        let outcome = Experiment::new(&trace, PolicyName::Dual).run(1).unwrap();
        outcome.allocated[0]
    };
    assert_eq!(all_placed("cpu_milli,memory_mib,num_gpu,gpu_milli\n1000,1024,1,1000\n"), 100_000_000);
    assert_eq!(all_placed(&format!("{HEAD}1000,1024,1,1000,onyx\n")), 0);
}

#[rstest]
#[case::range("42-44", &[42, 43, 44])]
#[case::list("7, 1,3-4", &[7, 1, 3, 4])]
fn seeds(#[case] text: &str, #[case] expected: &[u64]) {
    assert_eq!(parse_seeds(text), Ok(Seeds(expected.to_vec())));
}

#[rstest]
#[case::word("many", "\"many\" is not a whole number: write seeds like 42-51")]
#[case::reversed("9-3", "ends before it begins")]
#[case::too_many("0-10000", "more than 10000 seeds")]
#[case::all(&format!("0-{}", u64::MAX), "more than 10000 seeds")]
#[case::nothing("", "\"\" is not a whole number")]
fn bad_seeds_are_refused(#[case] text: &str, #[case] expected: &str) {
    let found = parse_seeds(text).unwrap_err();
    assert!(found.contains(expected), "{found}");
}

#[test]
fn the_help_of_the_experiment_has_examples() {
    let error = parse(&["--help"]).unwrap_err();
    assert!(error.to_string().contains("Examples:\n  spillway simulate openb"), "{error}");
}

fn refused(nodes: &Path, tasks: &Path) -> String {
    error::report(&Error::from(input::read(nodes, tasks).unwrap_err()).into())
}

/// A file that goes with the value.
struct Written(PathBuf);

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn write(text: &str) -> Written {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("spillway-simulate-{}-{}.csv", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    fs::write(&path, text).unwrap();
    Written(path)
}
