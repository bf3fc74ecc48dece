//! Placeholder.
pub mod settings;
pub mod clock;
pub mod failpoint;
pub mod metrics;
pub mod supervise;
pub mod home;
pub mod vault;
pub mod store;
