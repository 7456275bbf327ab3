//! What is asked of `/v1/usage`, as the parameters of a URL: `tenant`, `namespace`, `endpoint`, `model`, `key`, `from_ms`, `to_ms`, and `by`.

use std::collections::BTreeSet;

use crate::store::{Filter, Group};

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
