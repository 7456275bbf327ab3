use super::*;
use crate::output::shown;

fn finding(severity: Severity, invariant: u8, code: &'static str, object: &str) -> Violation {
    Violation { severity, invariant, code, object: object.to_owned(), message: "so it is".to_owned() }
}

fn checked() -> Checked {
    Checked { generation: Some(7), nodes: 3, pods: 2, reservations: 1 }
}

#[test]
fn nothing_found() {
    insta::assert_snapshot!(shown(&verdict(vec![], checked(), false)), @r#"
    0 violations, 0 warnings: ledger generation 7, 3 pool nodes with 2 pods, 1 reservation checked.
    "#);
}

#[test]
fn violations_are_shown_and_warnings_counted() {
    let findings = vec![
        finding(Severity::Violation, 1, "NodeSoldTwice", "Node/n1"),
        finding(Severity::Warning, 4, "HoldAfterEnd", "Node/n2"),
    ];
    insta::assert_snapshot!(shown(&verdict(findings.clone(), checked(), false)), @r#"
    SEVERITY   INVARIANT  CODE           OBJECT   MESSAGE
    Violation          1  NodeSoldTwice  Node/n1  so it is

    1 violation, 1 warning (--warnings shows more): ledger generation 7, 3 pool nodes with 2 pods, 1 reservation checked.
    "#);
    insta::assert_snapshot!(shown(&verdict(findings, checked(), true)), @r#"
    SEVERITY   INVARIANT  CODE           OBJECT   MESSAGE
    Violation          1  NodeSoldTwice  Node/n1  so it is
    Warning            4  HoldAfterEnd   Node/n2  so it is

    1 violation, 1 warning: ledger generation 7, 3 pool nodes with 2 pods, 1 reservation checked.
    "#);
}

#[test]
fn json_lists_the_findings() {
    let findings = vec![finding(Severity::Violation, 1, "NodeSoldTwice", "Node/n1")];
    insta::assert_snapshot!(serde_json::to_string_pretty(&verdict(findings, Checked::default(), false)).unwrap(), @r#"
    {
      "violations": 1,
      "warnings": 0,
      "checked": {
        "generation": null,
        "nodes": 0,
        "pods": 0,
        "reservations": 0
      },
      "findings": [
        {
          "severity": "Violation",
          "invariant": 1,
          "code": "NodeSoldTwice",
          "object": "Node/n1",
          "message": "so it is"
        }
      ]
    }
    "#);
}
