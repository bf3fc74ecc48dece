//! Where this node is, as others are told: in invites and introductions.

use hn_protocol::document::Presence;
use hn_protocol::invite::{BaseUrl, BaseUrlError};
use hn_protocol::sign::Signed;

use crate::catalog::Catalog;

/// Why there is no URL to tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoUrl {
    /// The node does not serve, and never did.
    #[error("this node has not served yet, so nobody can reach it")]
    Unknown,
    /// Its URL is none that routes can be appended to.
    #[error("the URL of this node is {url:?}: {error}")]
    Form {
        /// The URL.
        url: String,
        /// What is wrong with it.
        error: BaseUrlError,
    },
}

/// The node's own base URL: as it serves, else as its presence said last.
#[derive(Clone)]
pub struct OwnUrl {
    serving: Option<String>,
    catalog: Catalog,
}

impl OwnUrl {
    /// Of a node that serves at `serving`, or does not serve.
    #[must_use]
    pub fn new(serving: Option<String>, catalog: Catalog) -> Self {
        Self { serving, catalog }
    }

    /// The URL. Errors: there is none, or none that can be told.
    pub fn find(&self) -> Result<BaseUrl, NoUrl> {
        let url = self.serving.clone().or_else(|| self.last());
        let url = url.ok_or(NoUrl::Unknown)?;
        url.parse().map_err(|error| NoUrl::Form { url, error })
    }

    fn last(&self) -> Option<String> {
        let view = self.catalog.log(&self.catalog.own())?;
        let presence = Signed::<Presence>::verify(view.presence.clone()).ok()?;
        presence.endpoints.mcp.clone()
    }
}
