//! The one row of PostgreSQL that says who of several services leases limits ([`crate::holder`]).

use super::{Error, Postgres};
use crate::holder::Seat;

impl Postgres {
    /// Who has it.
    ///
    /// # Errors
    ///
    /// What PostgreSQL says, after one try.
    pub async fn seat(&self) -> Result<Seat, Error> {
        self.once("reading who leases limits", async |client| {
            let row = client.query_one("SELECT holder, address, beat FROM seat", &[]).await?;
            Ok(Seat { holder: row.try_get(0)?, address: row.try_get(1)?, beat: row.try_get(2)? })
        })
        .await
    }

    /// Takes it, if it still is as it was seen. Whether it is ours then.
    ///
    /// # Errors
    ///
    /// What PostgreSQL says, after one try; it may be ours nevertheless.
    pub async fn take_seat(&self, seen: &Seat, me: &str, address: &str) -> Result<bool, Error> {
        let take = "UPDATE seat SET holder = $1, address = $2, beat = beat + 1 WHERE holder = $3 AND beat = $4";
        self.once("taking the leasing of limits", async |client| {
            client.execute(take, &[&me, &address, &seen.holder, &seen.beat]).await.map(|rows| rows == 1)
        })
        .await
    }

    /// Renews it. Whether it is ours still.
    ///
    /// # Errors
    ///
    /// What PostgreSQL says, after one try; it may be renewed nevertheless.
    pub async fn renew_seat(&self, me: &str) -> Result<bool, Error> {
        let renew = "UPDATE seat SET beat = beat + 1 WHERE holder = $1";
        self.once("renewing the leasing of limits", async |client| {
            client.execute(renew, &[&me]).await.map(|rows| rows == 1)
        })
        .await
    }

    /// Gives it back, if it is ours.
    ///
    /// # Errors
    ///
    /// What PostgreSQL says, after one try.
    pub async fn leave_seat(&self, me: &str) -> Result<(), Error> {
        let leave = "UPDATE seat SET holder = '', address = '', beat = beat + 1 WHERE holder = $1";
        self.once("giving the leasing of limits back", async |client| client.execute(leave, &[&me]).await.map(drop))
            .await
    }
}
