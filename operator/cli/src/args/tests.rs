use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_has_examples() {
    for command in Cli::command().get_subcommands() {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.starts_with("Examples:\n"), "{} has none", command.get_name());
    }
}

#[test]
fn the_help_lists_exit_codes() {
    let help = Cli::command().render_long_help().to_string();
    assert!(help.contains("Exit codes:"), "{help}");
}

#[test]
fn defaults() {
    let cli = Cli::try_parse_from(["spillway", "verify"]).unwrap();
    let Command::Verify(args) = cli.command else { panic!("not verify") };
    assert_eq!(args.settle, 30_000);
    assert_eq!(args.infrastructure_namespaces, ["kube-system", "spillway-system", "gpu-operator"]);
    assert!(!args.warnings);
}

#[test]
fn bad_durations_are_refused() {
    let error = Cli::try_parse_from(["spillway", "verify", "--settle", "soon"]).unwrap_err();
    assert!(error.to_string().contains("is not a duration"), "{error}");
}

#[test]
fn it_knows_its_name_as_a_plugin() {
    assert_eq!(invoked_as(Some(OsStr::new("kubectl-spillway"))), "kubectl spillway");
    assert_eq!(invoked_as(Some(OsStr::new("bin/kubectl-spillway"))), "kubectl spillway");
    assert_eq!(invoked_as(Some(OsStr::new("spillway"))), "spillway");
    assert_eq!(invoked_as(None), "spillway");
}

#[test]
fn completions_are_written() {
    let mut script = Vec::new();
    write_completions(Shell::Bash, &mut script).unwrap();
    let script = String::from_utf8(script).unwrap();
    assert!(script.contains("_spillway()"));
}
