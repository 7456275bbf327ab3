use rstest::rstest;
use spillway_planner::{EndReason, TenantName, TimeMs};

use super::*;
use crate::{
    output::shown,
    sample::{HOUR, NOW, booking},
};

fn args(by: By, tenant: Option<&str>) -> UsageArgs {
    let spillway_namespace = "spillway-system".to_owned();
    UsageArgs { tenant: tenant.map(str::to_owned), from: None, to: None, by, model: None, spillway_namespace }
}

/// `run` is live on 8 devices since an hour and 59 minutes; `old` of another tenant was over an hour ago, after 59 minutes.
fn bookings() -> Bookings {
    let mut old = booking("b-0", "old", "n9");
    old.tenant = TenantName::from("beta");
    old.end = Some(TimeMs(NOW - HOUR));
    old.end_reason = Some(EndReason::Deleted);
    Bookings { live: vec![booking("b-1", "run", "n1").into()], ended: vec![old.into()], ..Bookings::default() }
}

fn answer(args: &UsageArgs, from: i64, to: i64) -> Usage {
    usage(&bookings(), &Stored::default(), args, from, to, NOW).unwrap()
}

#[test]
fn by_tenant() {
    insta::assert_snapshot!(shown(&answer(&args(By::Tenant, None), NOW - 24 * HOUR, NOW)), @r#"
    From 2026-11-20T08:00:00Z to 2026-11-21T08:00:00Z

    TENANT  GPU-HOURS
    acme    15.866667
    beta     7.866667
    total   23.733333
    "#);
}

#[test]
fn by_reservation() {
    insta::assert_snapshot!(shown(&answer(&args(By::Reservation, None), NOW - 24 * HOUR, NOW)), @r#"
    From 2026-11-20T08:00:00Z to 2026-11-21T08:00:00Z

    TENANT  NAMESPACE  RESERVATION  SKU              TIER       GPU-HOURS
    acme    acme       run          nvidia-h200-sxm  Committed  15.866667
    beta    acme       old          nvidia-h200-sxm  Committed   7.866667
    total                                                       23.733333
    "#);
}

#[test]
fn by_sku_of_one_tenant() {
    insta::assert_snapshot!(shown(&answer(&args(By::Sku, Some("beta")), NOW - 24 * HOUR, NOW)), @r#"
    From 2026-11-20T08:00:00Z to 2026-11-21T08:00:00Z

    SKU              TIER       GPU-HOURS
    nvidia-h200-sxm  Committed   7.866667
    total                        7.866667
    "#);
}

#[test]
fn json_has_exact_decimal_strings() {
    let answer = answer(&args(By::Tenant, Some("acme")), NOW - 1, NOW);
    insta::assert_snapshot!(serde_json::to_string_pretty(&answer).unwrap(), @r#"
    {
      "from": "2026-11-21T07:59:59.999Z",
      "to": "2026-11-21T08:00:00Z",
      "by": "tenant",
      "rows": [
        {
          "tenant": "acme",
          "deviceMilliseconds": "8",
          "gpuHours": "0.000002"
        }
      ],
      "total": {
        "deviceMilliseconds": "8",
        "gpuHours": "0.000002"
      }
    }
    "#);
}

/// One table of both, for a spreadsheet.
#[test]
fn csv_has_gpu_time_and_tokens() {
    let row = r#"{"tenant":"acme","requests":2,"partial":1,"promptTokens":70,"cachedTokens":30,"completionTokens":9}"#;
    let rows = vec![serde_json::from_str(row).unwrap()];
    let tokens = Some(Tokens { rows, missing: None });
    let answer = Usage { tokens, ..answer(&args(By::Tenant, Some("acme")), NOW - 1, NOW) };
    let mut out = Vec::new();
    crate::output::write(crate::output::Format::Csv, &answer, &mut out).unwrap();
    insta::assert_snapshot!(String::from_utf8(out).unwrap(), @"
    kind,from,to,tenant,namespace,reservation,sku,tier,device_milliseconds,gpu_hours,endpoint,model,requests,partial,prompt_tokens,cached_tokens,completion_tokens
    gpu,2026-11-21T07:59:59.999Z,2026-11-21T08:00:00Z,acme,,,,,8,0.000002,,,,,,,
    tokens,2026-11-21T07:59:59.999Z,2026-11-21T08:00:00Z,acme,,,,,,,,,2,1,70,30,9
    ");
    let missing = Some(Tokens { rows: Vec::new(), missing: Some("it is away".to_owned()) });
    let error = Usage { tokens: missing, ..answer }.write_csv(&mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "tokens are missing: it is away");
}

/// Periods that adjoin add up, and the future counts nothing.
#[rstest]
#[case::before(NOW - 48 * HOUR, NOW - 24 * HOUR, "0")]
#[case::all(NOW - 24 * HOUR, NOW, "85440000")]
#[case::first_half(NOW - 24 * HOUR, NOW - HOUR, "56640000")]
#[case::second_half(NOW - HOUR, NOW, "28800000")]
#[case::with_the_future(NOW - HOUR, NOW + 10 * HOUR, "28800000")]
fn periods(#[case] from: i64, #[case] to: i64, #[case] expected: &str) {
    assert_eq!(answer(&args(By::Tenant, None), from, to).total.device_milliseconds, expected);
}

#[test]
fn what_ended_is_counted_to_its_end_by_a_clock_that_is_behind() {
    let behind = NOW - 90 * 60_000;
    let answer =
        usage(&bookings(), &Stored::default(), &args(By::Tenant, Some("beta")), NOW - 24 * HOUR, NOW, behind).unwrap();
    assert_eq!(answer.total.device_milliseconds, (8 * 59 * 60_000).to_string());
}

/// What the usage service has of a booking is not counted from the ledger as well, but for what it has forgotten or, being another store than the one that
/// took it, has not got.
#[rstest]
#[case::away(false, 4, 0, None, "85440000")]
#[case::not_in_the_store(true, 4, 0, None, "85440000")]
#[case::in_the_store(true, 4, 28_320_000, None, "85440000")]
#[case::older_ones_too(true, 4, 28_321_000, None, "85441000")]
#[case::forgotten(true, 4, 1_000, Some(NOW), "85441000")]
#[case::not_forgotten(true, 4, 28_320_000, Some(NOW - HOUR), "85440000")]
#[case::another_store(true, 3, 1_000, None, "85441000")]
fn each_booking_is_counted_once(
    #[case] answered: bool,
    #[case] held: i64,
    #[case] of_beta: i64,
    #[case] forgotten_before_ms: Option<i64>,
    #[case] expected: &str,
) {
    let mut bookings = bookings();
    if of_beta > 0 {
        bookings.in_store.insert("b-0".into(), ("a".into(), 3));
    }
    let row = GpuRow { tenant: Some("beta".to_owned()), device_milliseconds: of_beta, ..GpuRow::default() };
    let held = BTreeMap::from([("a".to_owned(), held)]);
    let stored = Stored { answered, rows: vec![row], held, forgotten_before_ms, missing: None };
    let answer = usage(&bookings, &stored, &args(By::Tenant, None), NOW - 24 * HOUR, NOW, NOW).unwrap();
    assert_eq!(answer.total.device_milliseconds, expected);
    let rows: i64 = answer.rows.iter().map(|row| row.amount.device_milliseconds.parse::<i64>().unwrap()).sum();
    assert_eq!(rows.to_string(), expected);
    assert_eq!(answer.rows.len(), 2);
}

#[test]
fn what_may_be_missing_is_told_and_is_no_table() {
    let stored = Stored { missing: Some("it is away".to_owned()), ..Stored::default() };
    let answer = usage(&bookings(), &stored, &args(By::Tenant, None), NOW - 24 * HOUR, NOW, NOW).unwrap();
    assert!(shown(&answer).ends_with("\n\nNot all GPU time is shown: it is away.\n"), "{}", shown(&answer));
    let error = answer.write_csv(&mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "GPU time may be missing: it is away");
}

#[test]
fn a_reversed_period_is_an_error() {
    let error = usage(&bookings(), &Stored::default(), &args(By::Tenant, None), NOW, NOW - 1, NOW).unwrap_err();
    assert!(crate::error::report(&error).contains("before its start"));
}
