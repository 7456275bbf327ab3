//! Tokens of hosted models, as the usage service has them.

use std::io::{self, Write};

use kube::Client;
use serde::{Deserialize, Serialize};

use super::service;
use crate::{
    args::{By, UsageArgs},
    output::Table,
};

/// Sums of tokens, or why there are none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Tokens {
    /// The sums.
    pub(crate) rows: Vec<Row>,
    /// Why they are missing, if they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) missing: Option<String>,
}

/// One sum. What it is not about is not there.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Row {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    pub(crate) requests: u64,
    /// Requests that are billed in part.
    pub(crate) partial: u64,
    pub(crate) prompt_tokens: u64,
    /// Those of the prompt that an engine had cached.
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
}

#[derive(Deserialize)]
struct Rows {
    rows: Vec<Row>,
}

/// Asks the usage service. None where there is none.
pub(crate) async fn read(client: &Client, args: &UsageArgs, from_ms: i64, to_ms: i64) -> Option<Tokens> {
    let missing = |text: String| Some(Tokens { rows: Vec::new(), missing: Some(text) });
    let by = match args.by {
        By::Tenant => "tenant",
        By::Reservation => "tenant,namespace,endpoint,model",
        By::Sku => "model",
    };
    let mut path = format!("/v1/usage?by={by}&from_ms={from_ms}&to_ms={to_ms}");
    for (field, value) in [("tenant", &args.tenant), ("model", &args.model)] {
        let Some(value) = value else { continue };
        if !service::is_plain(value) {
            return missing(format!("{value:?} is no name of a {field}"));
        }
        path.push_str(&format!("&{field}={value}"));
    }
    match service::ask(client, &args.spillway_namespace, &path).await {
        Ok(answer) => answer.map(|Rows { rows }| Tokens { rows, missing: None }),
        Err(why) => missing(why),
    }
}

impl Tokens {
    /// Writes them for people, below what stands before.
    pub(crate) fn write_table(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out)?;
        if let Some(missing) = &self.missing {
            return writeln!(out, "Tokens are not shown: {missing}.");
        }
        if self.rows.is_empty() {
            return writeln!(out, "No tokens of hosted models were used.");
        }
        let first = self.rows.first().cloned().unwrap_or_default();
        let named = [
            ("TENANT", first.tenant.is_some()),
            ("NAMESPACE", first.namespace.is_some()),
            ("ENDPOINT", first.endpoint.is_some()),
            ("MODEL", first.model.is_some()),
        ];
        let mut heads: Vec<&str> = named.into_iter().filter(|(_, there)| *there).map(|(head, _)| head).collect();
        heads.extend(["REQUESTS", "PARTIAL", "PROMPT", "CACHED", "COMPLETION"]);
        let mut table = Table::new(&heads);
        for row in &self.rows {
            let names = [&row.tenant, &row.namespace, &row.endpoint, &row.model];
            let mut cells: Vec<String> = names.into_iter().flatten().cloned().collect();
            let sums = [row.requests, row.partial, row.prompt_tokens, row.cached_tokens, row.completion_tokens];
            cells.extend(sums.map(|sum| sum.to_string()));
            table.push(cells);
        }
        table.write(out, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(tokens: &Tokens) -> String {
        let mut out = Vec::new();
        tokens.write_table(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn sums_and_why_there_are_none() {
        let row =
            r#"{"tenant":"acme","requests":2,"partial":1,"promptTokens":70,"cachedTokens":30,"completionTokens":9}"#;
        let rows = vec![serde_json::from_str(row).unwrap()];
        insta::assert_snapshot!(shown(&Tokens { rows, missing: None }), @r"

        TENANT  REQUESTS  PARTIAL  PROMPT  CACHED  COMPLETION
        acme           2        1      70      30           9
        ");
        let missing = Some("it is away".to_owned());
        assert_eq!(shown(&Tokens { rows: Vec::new(), missing }), "\nTokens are not shown: it is away.\n");
        assert_eq!(shown(&Tokens { rows: Vec::new(), missing: None }), "\nNo tokens of hosted models were used.\n");
    }
}
