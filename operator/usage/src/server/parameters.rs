//! What is asked of `/v1/usage` and `/v1/gpu`, as the parameters of a URL: `tenant`, `namespace`, `endpoint`, `model`, `key`, `from_ms`, `to_ms`, and `by`.

use std::collections::BTreeSet;

use crate::store::{Filter, GpuFilter, GpuGroup, Group};

/// The filter and the groups of a query string; or what is wrong with it, and what to do.
pub(super) fn parse(query: &str) -> Result<(Filter, Vec<Group>), String> {
    let (mut filter, mut groups, mut seen) = (Filter::default(), Vec::new(), BTreeSet::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !seen.insert(name.to_string()) {
            return Err(format!("{name:?} is there twice: say it once (several groups are by=tenant,day)"));
        }
        let text = value.to_string();
        match name.as_ref() {
            "tenant" => filter.tenant = Some(text.into()),
            "namespace" => filter.namespace = Some(text.into()),
            "endpoint" => filter.endpoint = Some(text.into()),
            "model" => filter.model = Some(text.into()),
            "key" => filter.key = Some(text.into()),
            "from_ms" => filter.from_ms = time("from_ms", &text)?,
            "to_ms" => filter.to_ms = time("to_ms", &text)?,
            "by" => groups = text.split(',').map(group).collect::<Result<_, _>>()?,
            _ => {
                return Err(format!(
                    "there is no parameter {name:?}: there are tenant, namespace, endpoint, model, key, from_ms, to_ms and by"
                ));
            }
        }
    }
    if filter.to_ms < filter.from_ms {
        return Err(format!("to_ms ({}) is before from_ms ({}): swap them", filter.to_ms, filter.from_ms));
    }
    Ok((filter, groups))
}

/// The filter and the groups of a query string of `/v1/gpu`: `tenant`, `from_ms`, `to_ms`, `by`, and `before`, a list of `archive:place` of which only
/// what is below the place is asked for; or what is wrong with it, and what to do.
pub(super) fn parse_gpu(query: &str) -> Result<(GpuFilter, Vec<GpuGroup>), String> {
    let (mut filter, mut groups, mut seen) = (GpuFilter::default(), Vec::new(), BTreeSet::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !seen.insert(name.to_string()) {
            return Err(format!("{name:?} is there twice: say it once (several groups are by=tenant,sku)"));
        }
        let text = value.to_string();
        match name.as_ref() {
            "tenant" => filter.tenant = Some(text.into()),
            "from_ms" => filter.from_ms = time("from_ms", &text)?,
            "to_ms" => filter.to_ms = time("to_ms", &text)?,
            "before" => filter.before = text.split(',').map(place).collect::<Result<_, _>>()?,
            "by" => groups = text.split(',').map(gpu_group).collect::<Result<_, _>>()?,
            _ => {
                return Err(format!("there is no parameter {name:?}: there are tenant, from_ms, to_ms, before and by"));
            }
        }
    }
    if filter.to_ms < filter.from_ms {
        return Err(format!("to_ms ({}) is before from_ms ({}): swap them", filter.to_ms, filter.from_ms));
    }
    if filter.before.len() > MOST_ARCHIVES {
        return Err(format!("before names {} archives: a ledger has at most {MOST_ARCHIVES}", filter.before.len()));
    }
    Ok((filter, groups))
}

/// One for each pool of a ledger.
const MOST_ARCHIVES: usize = 256;

fn place(text: &str) -> Result<(String, i64), String> {
    let place = text.rsplit_once(':').and_then(|(archive, place)| Some((archive.to_owned(), place.parse().ok()?)));
    place.ok_or_else(|| format!("before has {text:?}: it is an archive's id and a place in it, as 0195...:12"))
}

fn gpu_group(text: &str) -> Result<GpuGroup, String> {
    let known: Vec<&str> = GpuGroup::ALL.into_iter().map(GpuGroup::as_str).collect();
    text.parse().map_err(|()| format!("by has {text:?}: sums are kept by {}", known.join(", ")))
}

fn time(name: &str, text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("{name} is {text:?}: it is a time in Unix milliseconds, such as 1790000000000"))
}

fn group(text: &str) -> Result<Group, String> {
    let known: Vec<&str> = Group::ALL.into_iter().map(Group::as_str).collect();
    text.parse().map_err(|()| format!("by has {text:?}: sums are kept by {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn all_of_them() {
        let query = "tenant=a%20b&namespace=n&endpoint=e&model=m&key=k&from_ms=-5&to_ms=7&by=tenant,day";
        let filter = Filter {
            tenant: Some("a b".into()),
            namespace: Some("n".into()),
            endpoint: Some("e".into()),
            model: Some("m".into()),
            key: Some("k".into()),
            from_ms: -5,
            to_ms: 7,
        };
        assert_eq!(parse(query), Ok((filter, vec![Group::Tenant, Group::Day])));
        assert_eq!(parse(""), Ok((Filter::default(), Vec::new())));
    }

    #[test]
    fn all_of_gpu_time() {
        let query = "tenant=a&from_ms=-5&to_ms=7&before=x:3,y:0&by=tenant,sku";
        let before = vec![("x".to_owned(), 3), ("y".to_owned(), 0)];
        let filter = GpuFilter { tenant: Some("a".into()), from_ms: -5, to_ms: 7, before };
        assert_eq!(parse_gpu(query), Ok((filter, vec![GpuGroup::Tenant, GpuGroup::Sku])));
        assert_eq!(parse_gpu(""), Ok((GpuFilter::default(), Vec::new())));
    }

    #[rstest]
    #[case::unknown("model=a", "there is no parameter \"model\"")]
    #[case::no_place("before=x", "before has \"x\"")]
    #[case::no_number("before=x:y", "before has \"x:y\"")]
    #[case::no_group("by=day", "by has \"day\"")]
    #[case::reversed("from_ms=2&to_ms=1", "to_ms (1) is before from_ms (2)")]
    fn what_is_wrong_of_gpu_time_is_said(#[case] query: &str, #[case] expected: &str) {
        let text = parse_gpu(query).unwrap_err();
        assert!(text.starts_with(expected), "{text}");
    }

    #[rstest]
    #[case::unknown("tennant=a", "there is no parameter \"tennant\"")]
    #[case::twice("key=a&key=b", "\"key\" is there twice")]
    #[case::no_time("to_ms=today", "to_ms is \"today\"")]
    #[case::no_group("by=tenant,week", "by has \"week\"")]
    #[case::empty_group("by=", "by has \"\"")]
    #[case::reversed("from_ms=2&to_ms=1", "to_ms (1) is before from_ms (2)")]
    fn what_is_wrong_is_said(#[case] query: &str, #[case] expected: &str) {
        let text = parse(query).unwrap_err();
        assert!(text.starts_with(expected), "{text}");
    }
}
