//! What is asked of a store, and the SQL of it that SQLite and PostgreSQL share.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use spillway_metering::tokens::{EndpointName, KeyId, ModelName, ModelVersion, RequestId};
use spillway_metering::{NamespaceName, TenantName};

use super::flat::{COLUMNS, COMPLETE};
use super::{Error, day_start_ms};

/// The most rows of sums that are given.
pub const MOST_ROWS: usize = 100_000;

/// Which records: all that every field that is set says. A record is at the time when its request ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Filter {
    /// Who pays.
    pub tenant: Option<TenantName>,
    /// The endpoint's namespace.
    pub namespace: Option<NamespaceName>,
    /// The endpoint, in whatever namespace.
    pub endpoint: Option<EndpointName>,
    /// The model.
    pub model: Option<ModelName>,
    /// The key.
    pub key: Option<KeyId>,
    /// From then on, Unix milliseconds; `i64::MIN` is no bound.
    pub from_ms: i64,
    /// Before then, Unix milliseconds; `i64::MAX` is no bound.
    pub to_ms: i64,
}

impl Default for Filter {
    /// Everything.
    fn default() -> Self {
        Self {
            tenant: None,
            namespace: None,
            endpoint: None,
            model: None,
            key: None,
            from_ms: i64::MIN,
            to_ms: i64::MAX,
        }
    }
}

/// What sums are kept by.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Group {
    /// Who pays.
    Tenant,
    /// The endpoint's namespace.
    Namespace,
    /// The endpoint. Of two namespaces, two may have one name.
    Endpoint,
    /// The model.
    Model,
    /// Its version.
    Version,
    /// The key.
    Key,
    /// The day of UTC on which a request ended.
    Day,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Tenant, Self::Namespace, Self::Endpoint, Self::Model, Self::Version, Self::Key, Self::Day];

    /// How it is asked for.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Namespace => "namespace",
            Self::Endpoint => "endpoint",
            Self::Model => "model",
            Self::Version => "version",
            Self::Key => "key",
            Self::Day => "day",
        }
    }

    fn column(self) -> &'static str {
        match self {
            Self::Key => "key_id",
            other => other.as_str(),
        }
    }
}

impl FromStr for Group {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|group| group.as_str() == text).ok_or(())
    }
}

/// Whose sums they are: what was grouped by is set. The order of the fields is the order of the rows.
#[derive(Clone, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupKey {
    /// Who pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantName>,
    /// The endpoint's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<NamespaceName>,
    /// The endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointName>,
    /// The model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelName>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<ModelVersion>,
    /// The key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyId>,
    /// The first millisecond of the day, Unix time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub day_ms: Option<i64>,
}

/// The value of a column that is grouped by.
pub(super) enum GroupValue {
    Name(String),
    Day(i64),
}

impl GroupKey {
    pub(super) fn set(&mut self, group: Group, value: GroupValue) {
        match (group, value) {
            (Group::Tenant, GroupValue::Name(name)) => self.tenant = Some(name.into()),
            (Group::Namespace, GroupValue::Name(name)) => self.namespace = Some(name.into()),
            (Group::Endpoint, GroupValue::Name(name)) => self.endpoint = Some(name.into()),
            (Group::Model, GroupValue::Name(name)) => self.model = Some(name.into()),
            (Group::Version, GroupValue::Name(name)) => self.version = Some(name.into()),
            (Group::Key, GroupValue::Name(name)) => self.key = Some(name.into()),
            (_, GroupValue::Day(day)) => self.day_ms = Some(day_start_ms(day)),
            (Group::Day, GroupValue::Name(_)) => {}
        }
    }
}

/// Sums of one group. A sum that has no room in 63 bits is an error of the store, never a wrong one.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Whose.
    #[serde(flatten)]
    pub group: GroupKey,
    /// Requests.
    pub requests: u64,
    /// Requests that are billed in part.
    pub partial: u64,
    /// Tokens of prompts, the cached ones among them.
    pub prompt_tokens: u64,
    /// Cached ones of them.
    pub cached_tokens: u64,
    /// Tokens that were produced.
    pub completion_tokens: u64,
}

impl Usage {
    /// Of what the store sums: requests, partial ones, and tokens of prompts, cached and produced.
    pub(super) fn new(group: GroupKey, sums: [i64; 5]) -> Result<Self, Error> {
        let mut unsigned = [0; 5];
        for (to, from) in unsigned.iter_mut().zip(sums) {
            *to = u64::try_from(from).map_err(|_| Error::Overflow)?;
        }
        let [requests, partial, prompt_tokens, cached_tokens, completion_tokens] = unsigned;
        Ok(Self { group, requests, partial, prompt_tokens, cached_tokens, completion_tokens })
    }
}

/// A value that is bound to a place in SQL.
pub(super) enum Bound {
    Text(String),
    Number(i64),
    Id([u8; 16]),
}

/// How places are written: `?1` or `$1`.
#[derive(Clone, Copy)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
}

/// SQL and its values, which are never in its text.
pub(super) struct Query {
    pub(super) sql: String,
    pub(super) values: Vec<Bound>,
    dialect: Dialect,
}

impl Query {
    fn new(dialect: Dialect, filter: &Filter) -> Self {
        let mut query = Self { sql: " WHERE 1 = 1".to_owned(), values: Vec::new(), dialect };
        // A bound that bounds nothing is left out, or it would tempt the store to go by time where it can go by id.
        if filter.from_ms > i64::MIN {
            query.also("ended_ms >=", Bound::Number(filter.from_ms));
        }
        if filter.to_ms < i64::MAX {
            query.also("ended_ms <", Bound::Number(filter.to_ms));
        }
        let names = [
            ("tenant =", filter.tenant.as_ref().map(TenantName::as_str)),
            ("namespace =", filter.namespace.as_ref().map(NamespaceName::as_str)),
            ("endpoint =", filter.endpoint.as_ref().map(EndpointName::as_str)),
            ("model =", filter.model.as_ref().map(ModelName::as_str)),
            ("key_id =", filter.key.as_ref().map(KeyId::as_str)),
        ];
        for (column, name) in names {
            if let Some(name) = name {
                query.also(column, Bound::Text(name.to_owned()));
            }
        }
        query
    }

    /// SQL that begins so.
    pub(super) fn empty(dialect: Dialect, sql: String) -> Self {
        Self { sql, values: Vec::new(), dialect }
    }

    pub(super) fn push(&mut self, sql: &str) {
        self.sql.push_str(sql);
    }

    pub(super) fn bind(&mut self, value: Bound) {
        self.values.push(value);
        let sign = match self.dialect {
            Dialect::Sqlite => '?',
            Dialect::Postgres => '$',
        };
        self.sql.push_str(&format!("{sign}{}", self.values.len()));
    }

    pub(super) fn also(&mut self, condition: &str, value: Bound) {
        self.sql.push_str(&format!(" AND {condition} "));
        self.bind(value);
    }

    /// Rows of the groups and five sums.
    pub(super) fn usage(dialect: Dialect, filter: &Filter, groups: &[Group]) -> Self {
        let mut query = Self::new(dialect, filter);
        let columns: Vec<&str> = groups.iter().map(|group| group.column()).collect();
        let columns = columns.join(", ");
        let comma = if groups.is_empty() { "" } else { ", " };
        let select = format!(
            "SELECT {columns}{comma}count(*), count(*) FILTER (WHERE outcome <> '{COMPLETE}'), \
             CAST(coalesce(sum(prompt), 0) AS BIGINT), CAST(coalesce(sum(cached), 0) AS BIGINT), \
             CAST(coalesce(sum(completion), 0) AS BIGINT) FROM records"
        );
        query.sql.insert_str(0, &select);
        if !groups.is_empty() {
            query.sql.push_str(&format!(" GROUP BY {columns}"));
        }
        // One more, to know that there are too many.
        query.sql.push_str(&format!(" LIMIT {}", MOST_ROWS.saturating_add(1)));
        query
    }

    /// Rows of whole records.
    pub(super) fn records(dialect: Dialect, filter: &Filter, after: Option<RequestId>, limit: u32) -> Self {
        let mut query = Self::new(dialect, filter);
        query.sql.insert_str(0, &format!("SELECT {COLUMNS} FROM records"));
        if let Some(after) = after {
            query.also("id >", Bound::Id(*after.as_bytes()));
        }
        query.sql.push_str(&format!(" ORDER BY id LIMIT {limit}"));
        query
    }
}

/// Each group once, in the order of [`Group::ALL`].
pub(super) fn distinct(groups: &[Group]) -> Vec<Group> {
    Group::ALL.into_iter().filter(|group| groups.contains(group)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_in_the_text() {
        let filter = Filter { tenant: Some("'; --".into()), to_ms: 7, ..Filter::default() };
        let query = Query::records(Dialect::Postgres, &filter, Some(RequestId::new(1, [0; 10])), 5);
        let expected = format!(
            "SELECT {COLUMNS} FROM records WHERE 1 = 1 AND ended_ms < $1 AND tenant = $2 AND id > $3 ORDER BY id LIMIT 5"
        );
        assert_eq!((query.sql, query.values.len()), (expected, 3));
        let query = Query::usage(Dialect::Sqlite, &filter, &[Group::Key, Group::Day]);
        assert!(query.sql.starts_with("SELECT key_id, day, count(*)"), "{}", query.sql);
        let end = " FROM records WHERE 1 = 1 AND ended_ms < ?1 AND tenant = ?2 GROUP BY key_id, day LIMIT 100001";
        assert!(query.sql.ends_with(end), "{}", query.sql);
    }
}
