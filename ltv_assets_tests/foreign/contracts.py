"""Contracts and features of the foreign tables, written by hand as their owners would."""

from __future__ import annotations

SHOP = """\
name: shop
identifier: customer_ref
time: {layout: date=%Y-%m-%d, column: null}
labels:
  payer: null
  revenue: {30: revenue_d30, 90: revenue_d90}
segments: [country, channel]
cold_start: channel
encodings: {pairs: [[country, channel]], ranked_within: [country], ranked: [spend_before]}
columns:
  - {name: customer_ref, role: identifier, type: string, meaning: identifier}
  - {name: revenue_d30, role: label, type: double, meaning: amount, unit: EUR}
  - {name: revenue_d90, role: label, type: double, meaning: amount, unit: EUR}
  - {name: country, type: string, meaning: category}
  - {name: channel, type: string, meaning: category}
  - {name: device, type: string, meaning: category}
  - {name: orders_before, type: int64, meaning: count}
  - {name: spend_before, type: double, meaning: amount, unit: EUR}
  - {name: days_since_last_order, type: double, meaning: number, unit: days}
  - {name: newsletter, type: int32, meaning: flag}
  - {name: signed_up, type: int64, meaning: timestamp}
"""
SHOP_FEATURES = """\
price_tiers: [20, 50]
groups:
  customer:
    enabled: true
    description: the customer
    columns:
      country: [value]
      channel: [value]
      device: [value]
      orders_before: [value]
      spend_before: [value, tier]
      days_since_last_order: [value]
      newsletter: [value]
      signed_up: [days_ago]
"""

GAME = """\
name: game
identifier: install_id
time: {layout: null, column: installed_at}
labels:
  payer: is_payer
  revenue: {1: rev1, 3: rev3, 7: rev7}
own_keys: {network: platform}
segments: [platform]
columns:
  - {name: install_id, role: identifier, type: string, meaning: identifier}
  - {name: installed_at, role: time, type: int64, meaning: timestamp}
  - {name: is_payer, role: label, type: int32, meaning: flag}
  - {name: rev1, role: label, type: double, meaning: amount, unit: USD}
  - {name: rev3, role: label, type: double, meaning: amount, unit: USD}
  - {name: rev7, role: label, type: double, meaning: amount, unit: USD}
  - {name: platform, type: string, meaning: category}
  - {name: campaign, type: string, meaning: category}
  - {name: created, source: account_created_at, type: int64, meaning: timestamp}
  - {name: session_minutes, type: "map<string,double>", meaning: number, keyed_by: session}
  - {name: ad_views, type: "map<string,int64>", meaning: count, keyed_by: network}
  - {name: levels_done, type: list<string>, meaning: identifier, keyed_by: level}
"""
GAME_FEATURES = """\
price_tiers: [1]
groups:
  install:
    enabled: true
    description: the install
    columns:
      platform: [value]
      campaign: [value]
      created: [days_ago]
      session_minutes: [n_keys, sum, max]
      ad_views: [n_keys, sum, top1_share]
      levels_done: [length]
"""

SUBSCRIPTIONS = """\
name: subscriptions
identifier: subscription_no
time: {layout: "dt=%Y-%m-%d/hour=%H", column: null}
labels: {payer: converted, revenue: {365: ltv_365}}
columns:
  - {name: subscription_no, role: identifier, type: string, meaning: identifier}
  - {name: converted, role: label, type: int32, meaning: flag}
  - {name: ltv_365, role: label, type: double, meaning: amount, unit: USD}
  - {name: trial_days, type: int64, meaning: number, unit: days}
  - {name: price_usd, type: double, meaning: amount, unit: USD}
  - {name: logins, type: int64, meaning: count}
  - {name: minutes_used, type: double, meaning: number, unit: minutes}
  - {name: support_tickets, type: int64, meaning: count}
  - {name: nps, type: double, meaning: number}
  - {name: mail_open_share, type: double, meaning: number, unit: share}
"""
SUBSCRIPTIONS_FEATURES = """\
price_tiers: [5, 10]
groups:
  subscription:
    enabled: true
    description: the subscription
    columns:
      trial_days: [value]
      price_usd: [value]
      logins: [value]
      minutes_used: [value]
      support_tickets: [value]
      nps: [value]
      mail_open_share: [value]
"""

CONTRACTS = {
    "shop": (SHOP, SHOP_FEATURES, "."),
    "game": (GAME, GAME_FEATURES, "."),
    "subscriptions": (SUBSCRIPTIONS, SUBSCRIPTIONS_FEATURES, None),
}
"""{table: (contract, features, folder of both splits or None for train/ and test/)}"""
